"""The front as a small plot of characters, and the best so far as a line: what a watcher sees while a search runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.text import Text

from automc import wording
from automc.budget import Budget, Limit
from automc.pareto import front
from automc.progress import Reference
from automc.trial import Trial
from automc.units import format_quantity

__all__ = ["Board"]

WIDTH, HEIGHT = 56, 9
_TRIED, _FRONT, _MEASURED, _DENSE, _BUDGET = "·", "●", "◆", "■", "┊"
_STYLES = {_TRIED: "dim", _FRONT: "blue", _MEASURED: "yellow", _DENSE: "bold", _BUDGET: "red"}
Mark = tuple[float, float, str]


@dataclass
class Board:
    """What has been found so far, against the dense model and the budget."""

    reference: Reference
    trials: list[Trial] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """What the front is drawn against: the first budgeted metric."""
        return next(iter(self.reference.limits), "latency_s")

    def best(self) -> Trial | None:
        """The best score inside the budget; what was certified comes before what was only tried."""
        budget = Budget(tuple(Limit(metric, value) for metric, value in self.reference.limits.items()))
        holding = [t for t in self._scored() if t.samples is None and budget.limits and budget.holds(t.cost)]
        return max(holding, key=lambda t: (t.stage != "search", t.score or 0.0), default=None)

    def best_line(self) -> str:
        """The best so far, as a sentence."""
        best, score = self.best(), self.reference.score_name
        if best is None:
            return "nothing inside the budget yet"
        known = best.cost.source.get(self.metric, "predicted")
        return (
            f"best so far: {score} {wording.score(score, best.score)} (dense {wording.score(score, self.reference.dense.validation)})"
            f" at {wording.quantity(self.metric, best.cost.get(self.metric))} {known}"
        )

    def plot(self, width: int = WIDTH, height: int = HEIGHT) -> Text:
        """Score (up) against cost (right), with the ranges written at the edges."""
        marks = self._marks()
        xs, ys = [x for x, _, _ in marks], [y for _, y, _ in marks]
        limit = self.reference.limits.get(self.metric)
        low, high = min([*xs, limit or xs[0]]), max([*xs, limit or xs[0]])
        bottom, top = _floor(ys), max(ys)
        rows = [[" "] * width for _ in range(height)]
        if limit is not None:
            column = _place(limit, low, high, width)
            for row in rows:
                row[column] = _BUDGET
        for x, y, mark in marks:
            if y >= bottom:
                rows[height - 1 - _place(y, bottom, top, height)][_place(x, low, high, width)] = mark
        return self._framed(rows, (low, high), (bottom, top))

    def _scored(self) -> list[Trial]:
        return [t for t in self.trials if t.score is not None and t.cost.get(self.metric) is not None]

    def _marks(self) -> list[Mark]:
        """(cost, score, character), the more important ones last, so that they lie on top."""
        scored, dense = self._scored(), self.reference.dense
        searched = [t for t in scored if t.stage == "search"]
        layers = [(searched, _TRIED), (front(searched, (self.metric,)), _FRONT)]
        layers.append(([t for t in scored if t.stage != "search"], _MEASURED))
        marks = [(t.cost.get(self.metric) or 0.0, t.score or 0.0, mark) for trials, mark in layers for t in trials]
        return [*marks, (dense.cost.get(self.metric) or 0.0, dense.validation, _DENSE)]

    def _framed(self, rows: Sequence[Sequence[str]], x: tuple[float, float], y: tuple[float, float]) -> Text:
        name = self.reference.score_name
        labels = {0: wording.score(name, y[1]), len(rows) - 1: wording.score(name, y[0])}
        margin = max(len(label) for label in labels.values())
        drawn = Text()
        for index, row in enumerate(rows):
            drawn.append(f"{labels.get(index, ''):>{margin}} │", "dim")
            for character in row:
                drawn.append(character, _STYLES.get(character, ""))
            drawn.append("\n")
        low, high = (format_quantity(self.metric, end) for end in x)
        drawn.append(f"{'':>{margin}} └{'─' * len(rows[0])}\n", "dim")
        drawn.append(f"{'':>{margin}}  {low}{high:>{len(rows[0]) - len(low)}}\n", "dim")
        finalists = self.reference.dense.source(self.metric)
        legend = ((_TRIED, "tried"), (_FRONT, "front"), (_MEASURED, finalists), (_DENSE, "dense"), (_BUDGET, "budget"))
        drawn.append(f"{'':>{margin}}  ")
        for character, meaning in legend:
            drawn.append(f"{character} ", _STYLES[character]).append(f"{meaning}  ", "dim")
        return drawn


def _place(value: float, low: float, high: float, count: int) -> int:
    """Which of `count` cells from `low` to `high` a value falls into."""
    share = (value - low) / (high - low) if high > low else 0.0
    return min(count - 1, max(0, round(share * (count - 1))))


def _floor(scores: Sequence[float]) -> float:
    """The lower quartile: the worst of what was tried would squeeze what matters into one row."""
    return sorted(scores)[len(scores) // 4]
