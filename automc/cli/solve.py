"""`automc solve`: another budget answered from what a run knows, then measured; or the whole curve."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.table import Table

from automc import registry, wording
from automc.answering import Known, Point, expected_score, limits_of
from automc.budget import Budget
from automc.cli.complete import run_names
from automc.cli.options import duration
from automc.cli.report import print_json, stdout
from automc.cli.screen import screen
from automc.disk import dump, write_atomic
from automc.errors import BudgetUnreachableError, InputError
from automc.result import Finalist, measured_under
from automc.rundir import RunDir
from automc.solver import Answer
from automc.units import (
    METRIC_NAMES,
    METRIC_TITLES,
    METRICS,
    format_limit,
    format_quantity,
    format_value,
    parse_duration,
)

if TYPE_CHECKING:
    from automc.resolve import Resolved

__all__ = ["solve"]

_EPILOG = """\b
Examples:
  automc solve --run digits-50ms --budget 30ms --budget 300kB
  automc solve --run digits-50ms --sweep
"""


@click.command(epilog=_EPILOG, short_help="Answer another budget from what a run knows.")
@click.option(
    "--run", "name", required=True, help="Name of the run, as `automc runs` lists it.", shell_complete=run_names
)
@click.option("--budget", "texts", multiple=True, metavar="LIMIT", help="30ms, 60%, 300kB, ...; several hold together.")
@click.option("--no-certify", is_flag=True, help="Only the answer: nothing is loaded and nothing measured.")
@click.option(
    "--recover",
    default="0",
    show_default=True,
    type=duration,
    metavar="DURATION",
    help="Time to fine-tune the answer for.",
)
@click.option(
    "--sweep", is_flag=True, help="The score over the whole range of a metric, within the budget if one is given."
)
@click.option(
    "--metric",
    type=click.Choice(list(METRIC_NAMES)),
    default="latency",
    show_default=True,
    help="What --sweep runs over.",
)
@click.option("--runs", "folder", default="runs", show_default=True, metavar="FOLDER", help="Where runs are recorded.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout instead of the tables.")
@click.option("--quiet", "-q", is_flag=True, help="No progress, only the result.")
def solve(
    name: str, texts: tuple[str, ...], no_certify: bool, recover: str, sweep: bool, metric: str, folder: str, as_json: bool,
    quiet: bool,
) -> int:  # fmt: skip
    """Answer another budget from the tables of a run at once, then measure the answer on the device.

    The files are written to solved/<budget> within the run; its best/ stays as it is. Exit code 3: nothing holds the budget.
    """
    if not texts and not sweep:
        raise InputError("There is no budget to solve for.", remedy="Give --budget 30ms, or --sweep for the curve.")
    run = RunDir.open(Path(folder), name)
    known = Known.read(run)
    budget = Budget.parse(*texts).resolve(known.reference.dense.cost) if texts else None
    if sweep:
        return _sweep(run, known, budget, METRIC_NAMES[metric], as_json=as_json)
    assert budget is not None
    answer = _answer(known, budget)
    if not as_json:
        stdout().print(_answer_table(known, budget, answer))
    if no_certify or not len(answer.policy):
        record = _write_answer(run, texts, answer)
        if as_json:
            print_json(record)
        else:
            stdout().print(_unmeasured(run, known, budget, texts, answer, record["path"]), soft_wrap=True)
        return 0
    resolved = _certified(run, known, texts, parse_duration(recover), quiet=quiet)
    if as_json:
        print_json(_record(answer, resolved))
    else:
        for line in _lines(run, known, budget, resolved):
            stdout().print(line, soft_wrap=True)
    return BudgetUnreachableError.exit_code if resolved.best is None else 0


def _answer(known: Known, budget: Budget) -> Answer:
    answer = known.solved(budget)
    if answer is not None:
        return answer
    nearest = known.nearest(budget)
    if nearest is None:
        priced = {metric for anchor in known.tables.anchors for metric in anchor.changed} if known.tables else set()
        missing = " and ".join(metric for metric in budget.metrics if metric not in priced)
        raise InputError(f"The run's tables do not price {missing}.", remedy=f"They price {', '.join(sorted(priced))}.")
    costs = " and ".join(format_limit(limit.metric, nearest.costs[limit.metric]) for limit in budget)
    raise BudgetUnreachableError(
        f"Nothing the run knows of holds {budget}; the nearest is estimated at {costs}.",
        remedy="Relax the budget to that, or search with a wider --space. `automc explain` says what limits it.",
    )


def _answer_table(known: Known, budget: Budget, answer: Answer) -> Table:
    """What was measured, what was tried, and the solver's answer."""
    table = Table(title=f"Within {budget}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    score = known.reference.score_name
    for heading in ("", score, *(METRIC_TITLES[metric] for metric in budget.metrics), "policy"):
        table.add_column(heading, justify="left" if heading in ("", "policy") else "right")
    measured, tried = known.measured(budget), known.tried(budget)
    if measured is not None:
        costs = [wording.quantity(metric, measured.cost.get(metric)) for metric in budget.metrics]
        table.add_row("measured before", wording.score(score, measured.validation), *costs, measured.policy.digest)
    if tried is not None:
        costs = [wording.quantity(metric, tried.cost.get(metric)) for metric in budget.metrics]
        table.add_row("tried, as predicted", wording.score(score, tried.score), *costs, tried.policy.digest)
    if measured is not None and _is_measured(known, budget, answer):
        return table
    costs = [format_quantity(metric, answer.costs[metric]) for metric in budget.metrics]
    expected = wording.score(score, _expected(known, answer))
    table.add_row("answer, as estimated", expected, *costs, answer.policy.digest if len(answer.policy) else "dense")
    return table


def _expected(known: Known, answer: Answer) -> float | None:
    assert known.tables is not None
    return expected_score(known.tables, known.trials, known.reference.dense.validation)(answer.loss)


def _write_answer(run: RunDir, texts: Sequence[str], answer: Answer) -> dict[str, Any]:
    """policy.json of an answer that is not measured."""
    record = {
        **answer.policy.to_json(),
        "digest": answer.policy.digest,
        "estimated": dict(answer.costs),
        "loss": answer.loss,
    }
    path = write_atomic(run.solved(texts).folder / "policy.json", dump(record))
    return {**record, "path": str(path)}


def _unmeasured(run: RunDir, known: Known, budget: Budget, texts: Sequence[str], answer: Answer, path: str) -> str:
    asked = shlex.quote(texts[0]) if len(texts) == 1 else "..."
    command = f"`automc export --run {shlex.quote(run.name)} --budget {asked}`"
    if not len(answer.policy):
        told = f"The dense model holds {' and '.join(texts)}: nothing has to be compressed."
        measured = known.measured(budget)
        faster = measured is not None and len(measured.policy)
        return f"{told} The search measured a faster one: {command} writes the model." if faster else told
    if _is_measured(known, budget, answer):
        return f"Measured during the search: {command} writes the model. Wrote {path}"
    return f"Not measured. Wrote {path}"


def _is_measured(known: Known, budget: Budget, answer: Answer) -> bool:
    """Whether the answer is a model that the search measured, and nothing that the tables estimate."""
    measured = known.measured(budget)
    return measured is not None and measured.policy == answer.policy


def _certified(run: RunDir, known: Known, texts: Sequence[str], recover_s: float, *, quiet: bool) -> Resolved:
    with screen(quiet=quiet) as watching, contextlib.redirect_stdout(sys.stderr):
        watching.stage("load libraries", None)
        from automc.resolve import certify_budget

        return certify_budget(run, known, texts, watching, recover_s=recover_s)


def _record(answer: Answer, resolved: Resolved) -> dict[str, Any]:
    return {
        "answer": {**answer.policy.to_json(), "digest": answer.policy.digest, "estimated": dict(answer.costs), "loss": answer.loss},
        "best": resolved.best.to_json() if resolved.best else None,
        "nearest": resolved.nearest.to_json() if resolved.nearest else None,
        "measured": [finalist.to_json() for finalist in resolved.measured],
        "folder": str(resolved.folder) if resolved.folder else None,
    }  # fmt: skip


def _lines(run: RunDir, known: Known, budget: Budget, resolved: Resolved) -> Iterator[str]:
    score = known.reference.score_name
    best, before = resolved.best, known.measured(budget)
    if best is None:
        assert resolved.nearest is not None
        yield f"Nothing held {budget} as {resolved.nearest.source()}; the nearest takes {_costs(budget, resolved.nearest)}."
        yield f"Relax the budget to that, or search for it: `{run.again} --budget ... --name ...`."
        return
    yield f"{best.source().capitalize()}: {_costs(budget, best)}, {score} {wording.score(score, best.validation)}; it holds {budget}."
    yield from measured_under(best.noisy, best.notes)
    if before is not None and before.merit > best.merit and len(before.policy):
        yield (
            f"A model measured during the search is better: {_costs(budget, before)}, {score} {wording.score(score, before.validation)};"
            " `automc export --budget` writes it."
        )
    yield f"Wrote {resolved.folder}: model.onnx, policy.json, certificate.json"


def _costs(budget: Budget, finalist: Finalist) -> str:
    shown = dict.fromkeys(("latency_s", *budget.metrics))
    known = ((metric, finalist.cost.get(metric)) for metric in shown)
    return " and ".join(
        wording.latency(finalist.cost) if metric == "latency_s" else format_quantity(metric, value)
        for metric, value in known
        if value is not None
    )


def _sweep(run: RunDir, known: Known, budget: Budget | None, metric: str, *, as_json: bool) -> int:
    """Print and save the curve."""
    points = known.curve(metric, limits_of(budget) if budget else {})
    if not points and not budget:
        raise InputError(
            f"The run's tables know nothing of the {METRIC_TITLES[metric]}.",
            remedy="Choose another --metric, or search with a budget of that one.",
        )
    if not points:
        raise BudgetUnreachableError(
            f"The run's tables have no answer within {budget} over the {METRIC_TITLES[metric]}.",
            remedy="Relax the budget, or choose another --metric.",
        )
    name = f"sweep-{next(short for short, full in METRIC_NAMES.items() if full == metric)}"
    rows = [_point_record(point) for point in points]
    path = write_atomic(run.path / f"{name}.json", json.dumps({"metric": metric, "points": rows}, indent=1) + "\n")
    figure = write_atomic(run.path / f"{name}.svg", _figure(known, metric, points))
    if as_json:
        print_json({"metric": metric, "points": rows, "paths": [str(path), str(figure)]})
        return 0
    stdout().print(_sweep_table(known, metric, points))
    stdout().print(f"Estimated, not measured: `automc solve --run {shlex.quote(run.name)} --budget ...` measures one. Wrote {path} and {figure}", soft_wrap=True)  # fmt: skip
    return 0


def _point_record(point: Point) -> dict[str, Any]:
    answer = point.answer
    return {
        "limit": point.limit,
        "estimated": dict(answer.costs),
        "loss": answer.loss,
        "expected_score": point.score,
        "policy": answer.policy.to_json(),
        "digest": answer.policy.digest,
    }


def _sweep_table(known: Known, metric: str, points: Sequence[Point]) -> Table:
    score = known.reference.score_name
    others = [m for m in METRICS if m != metric and m in points[0].answer.costs]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in (
        f"{METRIC_TITLES[metric]} at most",
        "estimated",
        *(METRIC_TITLES[m] for m in others),
        f"{score}, expected",
        "loss, nats",
    ):
        table.add_column(heading, justify="right")
    for point in points:
        costs = [format_quantity(m, point.answer.costs[m]) for m in (metric, *others)]
        expected = wording.score(score, point.score)
        table.add_row(format_quantity(metric, point.limit), *costs, expected, f"{point.answer.loss:.3g}")
    return table


def _figure(known: Known, metric: str, points: Sequence[Point]) -> str:
    dense = known.reference.dense.cost.get(metric) or 1.0
    unit = format_value(metric, dense)[1]
    scale = float(format_value(metric, dense)[0]) / dense
    share = 100.0 if wording.is_share(known.reference.score_name) else 1.0
    expected = [(scale * p.answer.costs[metric], share * p.score) for p in points if p.score is not None]
    full = [t for t in known.trials if t.score is not None and t.samples is None and t.cost.get(metric) is not None]
    tried = [(scale * (t.cost.get(metric) or 0.0), share * (t.score or 0.0)) for t in full if t.stage == "search"]
    measured = [
        (scale * (f.cost.get(metric) or 0.0), share * f.validation) for f in (*known.finalists, known.reference.dense)
    ]
    title = f"{known.reference.score_name}{' (%)' if share > 1 else ''}, validation"
    dots = {"tried, predicted": tried, "measured": measured}
    drawn: str = registry.load("figures", "lines")(
        f"{METRIC_TITLES[metric]} ({unit})", title, {"expected of answers": expected}, dots=dots
    )
    return drawn
