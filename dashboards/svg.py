"""The front as a small SVG picture, for a README or a slide, which show no Plotly: docs/screenshots.py draws README's by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

from automc.pareto import front
from automc.result import Summary
from automc.trial import Trial
from automc.units import format_quantity
from automc.wording import is_share

from .figures import BLACK, BLUE, GREEN, ORANGE, SKY, VERMILLION, Axis, score_range

__all__ = ["pareto_svg"]

_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 40, 55
Place = Callable[[float], float]


def pareto_svg(summary: Summary, trials: Sequence[Trial]) -> str:
    """What `figures.pareto` shows, without hovering: an SVG document with its own white background."""
    axis = Axis.of(summary)
    tried = [t for t in trials if t.state == "complete" and t.stage == "search" and t.cost.get(axis.metric) is not None]
    low, high = score_range(summary, tried)
    widest = max([axis(t.cost) for t in tried] + [axis(f.cost) for f in (summary.dense, *summary.finalists)])
    x = _place(0.0, 1.05 * widest, _LEFT, _WIDTH - _RIGHT)
    y = _place(low, high, _HEIGHT - _BOTTOM, _TOP)
    marks = [
        *_axes(summary, axis.title, x, y, 1.05 * widest, (low, high)),
        '<g clip-path="url(#inside)">',
        *(_dot(x(axis(t.cost)), y(t.score or 0.0)) for t in tried),
        _steps([(x(axis(t.cost)), y(t.score or 0.0)) for t in front(tried, (axis.metric,))]),
        *_budget(summary, axis, x),
        *_models(summary, axis, x, y),
        "</g>",
        *_legend(summary),
    ]
    return "\n".join([_HEAD, *marks, "</svg>\n"])


_HEAD = f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="13">
<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>
<clipPath id="inside"><rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH - _LEFT - _RIGHT}" height="{_HEIGHT - _TOP - _BOTTOM}"/></clipPath>"""


def _place(low: float, high: float, start: float, end: float) -> Place:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _axes(
    summary: Summary, title: str, x: Place, y: Place, widest: float, scores: tuple[float, float]
) -> Iterator[str]:
    bottom = _HEIGHT - _BOTTOM
    for value in _ticks(0.0, widest):
        yield f'<path d="M{x(value):.1f} {_TOP}V{bottom}" stroke="#e6e9ed"/>'
        yield _text(x(value), bottom + 18, f"{value:g}", "middle")
    for value in _ticks(*scores):
        yield f'<path d="M{_LEFT} {y(value):.1f}H{_WIDTH - _RIGHT}" stroke="#e6e9ed"/>'
        yield _text(
            _LEFT - 8, y(value) + 4, f"{100 * value:g} %" if is_share(summary.score_name) else f"{value:g}", "end"
        )
    yield _text((_LEFT + _WIDTH) / 2, _HEIGHT - 12, title, "middle")
    yield f'<g transform="translate(16 {_HEIGHT / 2}) rotate(-90)">{_text(0, 0, summary.score_name, "middle")}</g>'


def _budget(summary: Summary, axis: Axis, x: Place) -> Iterator[str]:
    limit = summary.limits.get(axis.metric)
    if limit is not None:
        at = x(axis.scale * limit)
        yield f'<path d="M{at:.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="{VERMILLION}" stroke-dasharray="6 4" stroke-width="1.5"/>'
        yield _text(at + 6, _HEIGHT - _BOTTOM - 8, f"budget {format_quantity(axis.metric, limit)}", "start", VERMILLION)


def _models(summary: Summary, axis: Axis, x: Place, y: Place) -> Iterator[str]:
    for model in summary.finalists:
        at = x(axis(model.cost))
        if model.before_recovery is not None:
            ends = f"M{at:.1f} {y(model.before_recovery[0]):.1f}V{y(model.validation):.1f}"
            yield f'<path d="{ends}" stroke="{GREEN}" stroke-dasharray="2 3" stroke-width="2"/>'
        if model != summary.best:
            yield _diamond(at, y(model.validation), ORANGE if model.stage == "finalist" else GREEN, filled=model.holds)
    yield _square(x(axis(summary.dense.cost)), y(summary.dense.validation))
    if summary.best is not None:
        yield _star(x(axis(summary.best.cost)), y(summary.best.validation))


def _legend(summary: Summary) -> Iterator[str]:
    entries = [
        (_dot(0, 0), "tried"),
        (f'<path d="M-9 0H9" stroke="{BLUE}" stroke-width="2"/>', f"front, {summary.priced}"),
        (_diamond(0, 0, ORANGE, filled=True), summary.dense.source(Axis.of(summary).metric)),
        (_square(0, 0), "dense"),
    ]
    if summary.best is not None:
        entries.append((_star(0, 0), "winner"))
    at = float(_LEFT + 10)
    for mark, name in entries:
        yield f'<g transform="translate({at:.0f} 20)">{mark}{_text(14, 4, name, "start")}</g>'
        at += 45 + 7.2 * len(name)


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers from `low` to `high`."""
    rough = (high - low) / 8
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(i * step, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _text(x: float, y: float, text: str, anchor: str, color: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{escape(text)}</text>'


def _dot(x: float, y: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{SKY}" fill-opacity="0.7"/>'


def _steps(points: Sequence[tuple[float, float]]) -> str:
    path = "".join(f"H{x:.1f}V{y:.1f}" for x, y in points[1:])
    return (
        f'<path d="M{points[0][0]:.1f} {points[0][1]:.1f}{path}" fill="none" stroke="{BLUE}" stroke-width="2"/>'
        if points
        else ""
    )


def _square(x: float, y: float) -> str:
    return f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" fill="{BLACK}"/>'


def _diamond(x: float, y: float, color: str, *, filled: bool) -> str:
    fill = color if filled else "#fff"
    return f'<path d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z" fill="{fill}" stroke="{color}" stroke-width="1.5"/>'


def _star(x: float, y: float) -> str:
    corners = [(11 if i % 2 == 0 else 4.6, math.pi * (i / 5 - 0.5)) for i in range(10)]
    points = " ".join(f"{x + r * math.cos(a):.1f},{y + r * math.sin(a):.1f}" for r, a in corners)
    return f'<polygon points="{points}" fill="{VERMILLION}" stroke="#fff"/>'
