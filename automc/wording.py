"""Numbers as people read them: in the tables and lines of the terminal, in reports and in figures."""

from __future__ import annotations

from automc.result import PredictorReport
from automc.trial import Cost
from automc.units import format_quantity, format_range

__all__ = [
    "NOTHING",
    "coverage",
    "duration",
    "error",
    "errors",
    "interval",
    "is_share",
    "known",
    "latency",
    "quantity",
    "relative",
    "score",
    "score_change",
]

NOTHING = "–"


def is_share(score_name: str) -> bool:
    """Whether a score is a share of right answers, to be read in percent."""
    return score_name == "accuracy"


def score(name: str, value: float | None) -> str:
    """A score: accuracies in percent, anything else as a plain number, a dash where it is unknown."""
    if value is None:
        return NOTHING
    return f"{100 * value:.2f} %" if is_share(name) else f"{value:.4g}"


def score_change(name: str, before: float | None, after: float | None) -> str:
    """What a score gained or lost: percentage points for accuracies."""
    if before is None or after is None:
        return NOTHING
    return f"{100 * (after - before):+.2f} points" if is_share(name) else f"{after - before:+.4g}"


def quantity(metric: str, value: float | None) -> str:
    """A cost with its unit, or a dash where it is unknown: 43.1 ms, 2.40 MB, 38.2 MMACs."""
    return NOTHING if value is None else format_quantity(metric, value)


def known(cost: Cost, metric: str) -> str:
    """A cost with its unit and how it is known: 43.1 ms measured."""
    value = cost.get(metric)
    return NOTHING if value is None else f"{format_quantity(metric, value)} {cost.source.get(metric, 'predicted')}"


def latency(cost: Cost) -> str:
    """A latency with its interval where there is one: 43.1 ms (42.8 to 43.5)."""
    value, ends = quantity("latency_s", cost.latency_s), interval(cost)
    return value if ends == NOTHING else f"{value} ({ends.rpartition(' ')[0]})"


def interval(cost: Cost) -> str:
    """The 95 % interval of a latency, in the unit that suits the latency: 42.8 to 43.5 ms; a dash where it has none, as when simulated."""
    if cost.latency_s is None or cost.latency_interval_s is None or cost.source.get("latency_s") == "simulated":
        return NOTHING
    return format_range("latency_s", *cost.latency_interval_s, around=cost.latency_s)


def relative(before: float | None, after: float | None) -> str:
    """By how much a cost changed: -53 %."""
    if not before or after is None:
        return NOTHING
    return f"{100 * (after / before - 1):+.0f} %"


def error(report: PredictorReport) -> str:
    """The predictor's error on whole models: 4.1 %, or unknown."""
    return "unknown" if report.mape is None else f"{100 * report.mape:.1f} %"


def errors(report: PredictorReport) -> str:
    """How far predictions are off what they did not learn from, beside how well that repeats."""
    kernels = "" if report.kernel_mape is None else f" and {100 * report.kernel_mape:.1f} % on held-out kernels"
    known = f"off by {error(report)} on held-out models{kernels}"
    models = "off by an unknown share, as no model could be held out" if report.mape is None else known
    return f"{models}; the measurements themselves repeat to {100 * report.noise_floor:.1f} %"


def coverage(report: PredictorReport) -> list[str]:
    """What a predictor knows the dense latency by, as a sentence where that is not all of it."""
    share = f"{100 * report.coverage:.0f} %"
    if share == "100 %":
        return []
    return [
        f"{share} of the dense latency is in kernels of classes that were measured; the rest is priced by a wider class,"
        " and less surely."
    ]


def duration(seconds: float) -> str:
    """A length of time at a glance: 4.2 s, 57 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
