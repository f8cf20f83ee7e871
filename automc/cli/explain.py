"""`automc explain`: why a run's policy is as it is, and what stands in the way of a budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import click
from rich import box
from rich.table import Table

from automc.answering import Known, as_budget
from automc.budget import Budget
from automc.cli.complete import run_names
from automc.cli.report import print_json, stdout
from automc.errors import InputError
from automc.explaining import Explained, LimitState, Reason, explain_policy
from automc.graph import ONLY_PRUNED
from automc.policy import Policy
from automc.result import Summary
from automc.rundir import RunDir
from automc.units import METRIC_TITLES, METRICS, format_limit, format_quantity
from automc.wording import NOTHING

__all__ = ["explain"]

_NOTICED = 1e-3
"""A difference that is shown, as a share of the greatest saving of a single choice."""
_EPILOG = """\b
Examples:
  automc explain --run digits-50ms
  automc explain --run digits-50ms --budget 5ms
"""


@click.command(epilog=_EPILOG, short_help="Say why a policy is as it is, and what to relax.")
@click.option(
    "--run", "name", required=True, help="Name of the run, as `automc runs` lists it.", shell_complete=run_names
)
@click.option(
    "--budget",
    "texts",
    multiple=True,
    metavar="LIMIT",
    help="Explain the answer to another budget; several hold together.",
)
@click.option("--all", "everything", is_flag=True, help="List what stayed dense too.")
@click.option("--runs", "folder", default="runs", show_default=True, metavar="FOLDER", help="Where runs are recorded.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout instead of the table.")
def explain(name: str, texts: tuple[str, ...], everything: bool, folder: str, as_json: bool) -> None:
    """Per layer: what was chosen, what it saves, and what the next best choice would cost; then which limit binds.

    Where nothing holds the budget, which limit to relax, and to what.
    """
    run = RunDir.open(Path(folder), name)
    known = Known.read(run)
    summary = run.summary() if (run.path / "summary.json").is_file() else None
    dense = known.reference.dense.cost
    budget = Budget.parse(*texts).resolve(dense) if texts else as_budget(known.reference.limits)
    alone = [name for name, reason in (summary.left_alone if summary else ()) if not reason.endswith(ONLY_PRUNED)]
    explained = explain_policy(known, _policy(known, budget, None if texts else summary), budget, alone)
    if as_json:
        print_json({"run": run.name, "budget": dict(_pairs(budget)), **explained.to_json()})
        return
    console = stdout()
    console.print(_table(explained, budget, everything=everything))
    for line in (*_limit_lines(explained), *_relax_lines(explained, budget), *_left_alone(explained, summary)):
        console.print(line, soft_wrap=True)


def _pairs(budget: Budget) -> Iterator[tuple[str, float]]:
    return ((limit.metric, limit.value) for limit in budget)


def _policy(known: Known, budget: Budget, summary: Summary | None) -> Policy:
    """What the run chose; for another budget, or before the search has ended, what its tables answer or come nearest by."""
    if summary is not None:
        return (summary.best or summary.smallest or summary.dense).policy
    answer = known.solved(budget) or known.nearest(budget)
    if answer is None:
        raise InputError("The run's tables do not price this budget.", remedy="Use a metric that the search knew of.")
    return answer.policy


def _table(explained: Explained, budget: Budget, *, everything: bool) -> Table:
    """One row per choice; costs in the metrics of the budget, latency and size."""
    priced = {metric for reason in explained.reasons for metric in reason.saves}
    shown = [m for m in METRICS if m in priced and m in {"latency_s", "size_bytes", *budget.metrics}]
    title = f"Policy {explained.policy.digest}" if len(explained.policy) else "The dense model"
    about = "" if explained.exact else "; costs are those around the nearest policy that was priced"
    table = Table(title=f"{title}{about}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("layer or channel group", "chosen"):
        table.add_column(heading)
    for heading in (*(f"saves {METRIC_TITLES[m]}" for m in shown), "loss, nats"):
        table.add_column(heading, justify="right")
    table.add_column("next best")
    for heading in (*(METRIC_TITLES[m] for m in shown), "loss"):
        table.add_column(heading, justify="right")
    least = {m: _NOTICED * max(abs(reason.saves[m]) for reason in explained.reasons) for m in shown}
    for reason in explained.reasons:
        if everything or reason.choice != "dense":
            table.add_row(*_row(reason, least))
    return table


def _row(reason: Reason, least: Mapping[str, float]) -> list[str]:
    """A row; differences of less than the `least` per metric shown are none."""
    knob = reason.knob.replace("_", " ")
    chosen = f"{knob} {reason.choice}" if reason.choice == "dense" else reason.choice
    saves = [_difference(m, reason.saves[m], smallest) for m, smallest in least.items()]
    following = [
        _difference(m, reason.next_costs[m], smallest, sign="+") if reason.next_costs else NOTHING
        for m, smallest in least.items()
    ]
    more = f"{reason.next_loss:+.2g}" if reason.next_choice else NOTHING
    return [reason.target, chosen, *saves, f"{reason.loss:.2g}", reason.next_choice or NOTHING, *following, more]


def _difference(metric: str, value: float, least: float, sign: str = "") -> str:
    if abs(value) <= least:
        return "none"
    return (sign if value >= 0 else "") + format_quantity(metric, value)


def _limit_lines(explained: Explained) -> Iterator[str]:
    for state in explained.limits:
        title = METRIC_TITLES[state.metric]
        least = f" The least known is {format_quantity(state.metric, state.alone)}." if state.alone is not None else ""
        yield f"{title[0].upper()}{title[1:]}: {_use(state)}.{least}"


def _use(state: LimitState) -> str:
    limit = format_quantity(state.metric, state.limit)
    if state.value is None:
        return f"limited to {limit}, and not known of this policy"
    share = 1.0 - state.value / state.limit
    upper = " (upper end of the interval)" if state.metric == "latency_s" else ""
    taken = f"{format_quantity(state.metric, state.value)}{upper} of {limit}"
    if share < 0:
        return f"{taken}, {-100 * share:.0f} % too much"
    return f"{taken}, {100 * share:.0f} % left" + ("; this limit binds" if state.binds else "")


def _relax_lines(explained: Explained, budget: Budget) -> Iterator[str]:
    if explained.reachable:
        return
    yield f"Nothing that the run's tables know of holds {budget}."
    if explained.relax:
        to = " and ".join(f"{METRIC_TITLES[m]} to {format_limit(m, value)}" for m, value in explained.relax.items())
        yield f"Relax {to}, or search with a wider --space."


def _left_alone(explained: Explained, summary: Summary | None) -> Iterator[str]:
    """The layers that no policy touches and that take at least a twentieth of the time."""
    reasons = dict(summary.left_alone) if summary else {}
    for layer, share in sorted(explained.left_alone_share.items(), key=lambda pair: -pair[1]):
        if share >= 0.05:
            yield f"{layer} takes {100 * share:.0f} % of the predicted time and is left alone: {reasons[layer]}."
