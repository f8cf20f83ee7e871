"""`automc bench`: the agents on equal terms, on real evaluations that are kept."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from automc import registry
from automc.cli.complete import plug_in_names, run_names
from automc.cli.options import JOB_OPTIONS, duration
from automc.cli.report import print_json, stdout
from automc.cli.screen import screen
from automc.disk import try_folder, write_atomic
from automc.errors import BudgetUnreachableError, InputError
from automc.protocols import Observer
from automc.rundir import RunDir
from automc.units import parse_duration
from automc.wording import is_share

if TYPE_CHECKING:
    from automc.arena import Arena
    from automc.job import Job

__all__ = ["bench"]

_SETTING = (
    "budget", "model", "weights", "data", "evaluate", "batch_size", "device", "threads", "space", "criterion", "profile",
)  # fmt: skip
_OPTIONS = [option for option in JOB_OPTIONS if option.name in _SETTING]
_AGENTS = "What to compare; several times for several. Default: all that are installed."
_RUN = "Compare on the model, data and budget of this run, and take its scores over."
_EPILOG = """\b
Examples:
  automc bench --budget 50% --evaluations 20 --seeds 2 --out arena
  automc bench --budget 50%macs --evaluations 100 --seeds 5 --recover 5m
"""


def _with_setting(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that a comparison shares with a search."""
    existing: list[click.Parameter] = command.__dict__.setdefault("__click_params__", [])
    existing.extend(reversed(_OPTIONS))  # click collects parameters last first
    return command


@click.command(epilog=_EPILOG, short_help="Compare the agents at equal evaluations.")
@_with_setting
@click.option("--run", "name", metavar="RUN", help=_RUN, shell_complete=run_names)
@click.option("--agent", "agents", multiple=True, metavar="NAME", help=_AGENTS, shell_complete=plug_in_names)
@click.option(
    "--evaluations",
    type=click.IntRange(min=1),
    default=40,
    show_default=True,
    help="Policies that each agent may have evaluated.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Searches of each agent.")
@click.option(
    "--recover",
    default="0",
    show_default=True,
    type=duration,
    metavar="DURATION",
    help="Time to fine-tune each winner for; with 0 it is scored on the test samples as it is.",
)
@click.option("--live", is_flag=True, help="Evaluate everything anew instead of reading what is kept.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("arena"),
    show_default=True,
    metavar="DIR",
    help="Folder to write to.",
)
@click.option("--runs", "folder", default="runs", show_default=True, metavar="FOLDER", help="Where runs are recorded.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout instead of the table.")
@click.option("--quiet", "-q", is_flag=True, help="No progress, only the result.")
@click.pass_context
def bench(
    context: click.Context, /, name: str | None, agents: tuple[str, ...], evaluations: int, seeds: int, recover: str, live: bool,
    out: Path, folder: str, as_json: bool, quiet: bool, **_options: Any,
) -> int:  # fmt: skip
    """Compare agents on one model, with equal evaluations and equal seeds.

    Exit code 3: no agent found a policy inside the budget. Every policy is evaluated once by the real evaluator and its score kept in --out, as are the losses of single choices, so that repeating a comparison takes
    little more than the agents' own time. Writes table.md, results.json and progress.svg there after every agent.
    """
    chosen = _chosen(agents)
    run = RunDir.open(Path(folder), name) if name else None
    try_folder(out)
    with screen(quiet=quiet) as watching, contextlib.redirect_stdout(sys.stderr):
        watching.stage("load libraries", None)
        from automc.arena import open_arena

        job = _job(context, run, evaluations)
        arena = open_arena(job, out, watching, live=live, run=run)
        record = _held(arena, chosen, evaluations, seeds, parse_duration(recover), out, watching)
    reached = any(row["mean"] is not None for row in record["rows"])
    if as_json:
        print_json(record)
        return 0 if reached else BudgetUnreachableError.exit_code
    stdout().print((out / "table.md").read_text(), soft_wrap=True)
    for line in (*_proxy_lines(record), f"Wrote {out / 'table.md'}, {out / 'results.json'} and {out / 'progress.svg'}"):
        stdout().print(line, soft_wrap=True)
    if not reached:
        broke = sum(bool(course["reason"]) for course in record["courses"])
        remedy = "relax the budget." if broke < len(record["courses"]) else "each of them failed, see above."
        stdout().print(f"No agent found a policy inside {' and '.join(job.budget)}: {remedy}")
    return 0 if reached else BudgetUnreachableError.exit_code


def _chosen(agents: tuple[str, ...]) -> list[str]:
    """The names, each known; all where none were given."""
    for agent in agents:
        registry.load("agent", agent)
    return list(dict.fromkeys(agents)) or registry.names("agent")


def _job(context: click.Context, run: RunDir | None, evaluations: int) -> Job:
    """The run's job, or what the options say; an option given besides --run overrides the run's."""
    from dataclasses import replace

    from automc.job import Job
    from automc.reopening import job_of

    given = {option.name: context.params[option.name] for option in _OPTIONS if option.name}
    fixed = {"trials": evaluations, "recover": "0", "tracking_uri": "", "warm_start": None, "objective": ()}
    if run is None:
        return Job(**{**given, **fixed})
    source = click.core.ParameterSource.DEFAULT
    changed = {name: value for name, value in given.items() if context.get_parameter_source(name) is not source}
    if changed.keys() - {"budget", "threads", "profile"}:
        raise InputError("--run brings its own model, data and space.", remedy="Leave out --run, or these options.")
    return replace(job_of(run), **{**changed, **fixed})


def _held(
    arena: Arena, agents: list[str], evaluations: int, seeds: int, recover_s: float, out: Path, observer: Observer
) -> dict[str, Any]:
    """Run all courses; what is known so far is on disk after every agent."""
    observer.stage("let the agents search", len(agents) * seeds * evaluations)
    record: dict[str, Any] = {}
    for agent in agents:
        for seed in range(seeds):
            course = arena.run(agent, seed, evaluations, lambda amount, agent=agent: observer.advance(amount, agent))  # type: ignore[misc]
            if course.reason:
                observer.message(f"{agent}, seed {seed}: {course.reason}", "warning")
        record = _write(arena, out)
    if recover_s > 0 or arena.prepared.data.test is not None:
        arena.recover(recover_s, observer)
        record = _write(arena, out)
    return record


def _write(arena: Arena, out: Path) -> dict[str, Any]:
    league, score = arena.league, arena.task.score.name
    dense = arena.certifier.dense
    record = {
        "score": score,
        "dense": {"score": dense.validation, "test": dense.test, "cost": dense.cost.to_json()},
        "device": arena.prepared.device.name,
        "evaluated": arena.book.evaluated,
        "kendall_tau": {proxy: {"tau": _finite(tau), "policies": n} for proxy, (tau, n) in arena.correlations().items()},
        **league.to_json(),
        "progress": {row.agent: league.progress(row.agent) for row in league.rows()},
    }  # fmt: skip
    percent = 100.0 if is_share(score) else 1.0
    series = {agent: [(x, percent * y) for x, y in steps] for agent, steps in record["progress"].items()}
    title = f"best {score}{' (%)' if percent > 1 else ''} inside the budget, mean over the seeds"
    write_atomic(out / "table.md", league.markdown(score))
    write_atomic(out / "results.json", json.dumps(record, indent=1) + "\n")
    write_atomic(out / "progress.svg", registry.load("figures", "lines")("evaluations", title, series))
    return record


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _proxy_lines(record: dict[str, Any]) -> Iterator[str]:
    known = {proxy: told for proxy, told in record["kendall_tau"].items() if told["tau"] is not None}
    if known:
        yield "Rank correlation (Kendall's tau):"
    for proxy, told in known.items():
        yield f"  {proxy}: {told['tau']:.2f} over {told['policies']} policies"
