"""Lines over one pair of axes as a small SVG picture: the curve of a sweep, the progress of agents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape

from .figures import BLACK, BLUE, GREEN, ORANGE, SKY, VERMILLION

__all__ = ["lines_svg"]

_WIDTH, _HEIGHT = 900, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 200, 20, 55
_COLORS = (BLUE, VERMILLION, GREEN, ORANGE, SKY, BLACK)
_DASHES = ("", "7 4", "2 3", "9 3 2 3")
Points = Sequence[tuple[float, float]]
Place = Callable[[float], float]


def lines_svg(
    x_title: str, y_title: str, series: Mapping[str, Points], *, dots: Mapping[str, Points] | None = None
) -> str:
    """An SVG document with its own white background.

    Args:
        series: name -> (x, y) points that are joined in the order given.
        dots: name -> (x, y) points that are not joined.
    """
    scattered = dots or {}
    points = [point for group in (*series.values(), *scattered.values()) for point in group]
    if not points:
        return f"{_HEAD}{_text(_WIDTH / 2, _HEIGHT / 2, 'nothing to draw', 'middle')}</svg>\n"
    xs, ys = _span([x for x, _ in points]), _span([y for _, y in points])
    x, y = _place(xs, _LEFT, _WIDTH - _RIGHT), _place(ys, _HEIGHT - _BOTTOM, _TOP)
    marks = [*_axes(x_title, y_title, x, y, xs, ys)]
    styles = {name: (_COLORS[i % 6], _DASHES[i // 6 % 4]) for i, name in enumerate((*series, *scattered))}
    marks += [_line(line, x, y, styles[name]) for name, line in series.items()]
    marks += [_dot(x(a), y(b), styles[name][0]) for name, group in scattered.items() for a, b in group]
    marks += _legend(styles, set(series))
    return "\n".join([_HEAD, *marks, "</svg>\n"])


_HEAD = f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="13">
<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>"""


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis: a little beyond the values, and never both the same."""
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _place(span: tuple[float, float], start: float, end: float) -> Place:
    low, high = span
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _axes(
    x_title: str, y_title: str, x: Place, y: Place, xs: tuple[float, float], ys: tuple[float, float]
) -> Iterator[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for value in _ticks(*xs):
        yield f'<path d="M{x(value):.1f} {_TOP}V{bottom}" stroke="#e6e9ed"/>'
        yield _text(x(value), bottom + 18, f"{value:g}", "middle")
    for value in _ticks(*ys):
        yield f'<path d="M{_LEFT} {y(value):.1f}H{right}" stroke="#e6e9ed"/>'
        yield _text(_LEFT - 8, y(value) + 4, f"{value:g}", "end")
    yield _text((_LEFT + right) / 2, _HEIGHT - 12, x_title, "middle")
    yield f'<g transform="translate(18 {_HEIGHT / 2}) rotate(-90)">{_text(0, 0, y_title, "middle")}</g>'


def _line(points: Points, x: Place, y: Place, style: tuple[str, str]) -> str:
    color, dash = style
    path = "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2"{dashes}/>' if path else ""


def _dot(x: float, y: float, color: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}" fill-opacity="0.8"/>'


def _legend(styles: Mapping[str, tuple[str, str]], joined: set[str]) -> list[str]:
    at, marks = _WIDTH - _RIGHT + 15, []
    for row, (name, (color, dash)) in enumerate(styles.items()):
        line, dashes = _TOP + 12 + 19 * row, f' stroke-dasharray="{dash}"' if dash else ""
        stroke = f'<path d="M{at} {line - 4}h24" stroke="{color}" stroke-width="2"{dashes}/>'
        marks.append(stroke if name in joined else _dot(at + 12, line - 4, color))
        marks.append(_text(at + 30, line, name, "start"))
    return marks


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers from `low` to `high`."""
    rough = (high - low) / 8
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((factor * power for factor in (1, 2, 5, 10) if factor * power >= rough), 10 * power)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#333">{escape(text)}</text>'
