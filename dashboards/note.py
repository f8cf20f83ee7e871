"""A search in a few lines of Markdown, for the description of its run in a tracker: what won, how sure that is, what each layer takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from automc import wording
from automc.result import Finalist, Summary, has_interval
from automc.tables import Tables

from . import by_layer, words

__all__ = ["note"]

_ROWS = 30
_HEADS = ("layer or channel group", "channels kept", "rank", "bits")


def note(summary: Summary, tables: Tables | None, run_id: str) -> str:
    """The outcome of a search; `run_id` is the tracker's, from which the winner can be exported."""
    chosen = summary.best or summary.smallest
    if chosen is None:
        return words.verdict(summary)
    return "\n\n".join(
        [words.verdict(summary), *_trust(summary, chosen), *_take(summary, run_id), _layers(summary, chosen, tables)]
    )


def _trust(summary: Summary, chosen: Finalist) -> Iterator[str]:
    if has_interval(chosen):
        yield (
            f"The 95 % interval of its latency is {wording.interval(chosen.cost)}, measured in turns with the dense model; measurements "
            f"repeat to {100 * summary.predictor.noise_floor:.1f} %."
        )


def _take(summary: Summary, run_id: str) -> Iterator[str]:
    if summary.best is not None:
        yield f"The file is best/model.onnx among the artifacts, or `automc export --mlflow-run {run_id} --out deploy`."


def _layers(summary: Summary, chosen: Finalist, tables: Tables | None) -> str:
    """What was chosen and what it takes, for each layer of which either is known."""
    knobs = {row[0]: row[1:] for row in words.knob_rows(chosen.policy, summary.widths)}
    times = {name: (dense, now) for name, dense, now in by_layer.cost_rows(tables, chosen.policy)} if tables else {}
    rows = []
    for name in dict.fromkeys([*times, *knobs]):
        seconds = [wording.quantity("latency_s", value) for value in times.get(name, ())]
        rows.append((name, *knobs.get(name, ("", "", "")), *seconds))
    heads = (*_HEADS, *(("dense", "now, predicted") if times else ()))
    more = [f"and {len(rows) - _ROWS} more, in report.html"] if len(rows) > _ROWS else []
    return "\n".join([*_table(heads, rows[:_ROWS]), *more])


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (heads, ["---"] * len(heads), *rows):
        yield f"| {' | '.join([*row, *[''] * (len(heads) - len(row))])} |"
