"""The options that describe a search: declared once, shared by `search` and `check`, and the keys of a recipe file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from click.core import ParameterSource

from automc.cli.complete import plug_in_names
from automc.cli.recipe import read_recipe
from automc.recipe import Fidelity, RecordedTrials
from automc.units import METRIC_NAMES, parse_duration

__all__ = ["JOB_OPTIONS", "duration", "job_options", "settings", "worker_count"]

F = TypeVar("F", bound=Callable[..., Any])


def duration(text: str) -> str:
    """A length of time as people write it, checked here and kept as text: 90s, 10m, 1h; 0 is none.

    Raises:
        click.BadParameter: it is not a duration.
    """
    stripped = text.strip()
    try:
        parse_duration(stripped)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a duration: write 90s, 10m or 1h; 0 is off") from None
    return stripped


def worker_count(text: str) -> int | str:
    """A number of workers, 1 or more, or auto.

    Raises:
        click.BadParameter: it is neither.
    """
    stripped = str(text).strip()
    if stripped == "auto":
        return stripped
    if not stripped.isdecimal() or int(stripped) < 1:
        raise click.BadParameter(f"{text!r} is not a number of workers: write 1 or more, or auto")
    return int(stripped)


_MODEL = "FILE.py:FUNCTION or MODULE:FUNCTION that returns the model, torchvision:NAME, timm:NAME. Default: demo."
_DATA = "digits, npz:FILE, imagefolder:DIR, cifar10:DIR, or FILE.py:FUNCTION that returns the loaders. Default: digits."
_EVALUATE = "FILE.py:FUNCTION of (model, loader) that returns a score, higher is better. Default: accuracy."
_CRITERION = "Which channels are pruned first: obs, fisher, l1, l2, bn, taylor, fpgm, apoz, lamp, random."
_AGENT = "What proposes policies: ilp, auto, spdy, netadapt, evolution, tpe, nsga2, gp, cmaes, amc, haq, haq-joint, greedy-sensitivity, uniform, random."
_RECOVER = "Time to fine-tune the finalists for, in all; 0 = off."
_FIDELITY = "Tell candidates apart by short distillations, in a part of --recover; auto = where the winner lost much."
_FINETUNE = "Epochs to fine-tune the winner for at the end, as `automc finetune` does; 0 = off."
_PROFILE = "Time to measure the device with this model, the first time."
_WORKERS = "Evaluations at a time, on Ray where it is more than 1; auto = as many as there are CPUs for."
_WORKER_CPUS = "CPUs that a worker holds, such as 0.5 or 4; it evaluates with as many threads."
_RAY_ENV = "runtime_env of the workers, as `py_modules: [dist/automc.whl]` for a cluster without automc."
_TRIAL_TIMEOUT = "Time for one evaluation, on workers; after it, it is tried once more on another worker."
_SYNC = "Let workers wait for each other: the same seed then gives the same trials."
_WARM_START = "A run whose policies are tried first, or a JSON or YAML file with a policy of another tool."
_TRACKING = "MLflow server or store; '' records nothing. Default: $MLFLOW_TRACKING_URI, or sqlite:///mlflow.db here."
_REGISTER = "Name in MLflow's model registry for the best models, with the aliases best and knee."

JOB_OPTIONS = (
    click.Option(
        ["--budget"],
        multiple=True,
        default=("50ms",),
        metavar="LIMIT",
        help="50ms, 60%, 30mJ, 4MB, 20MMACs, 50%size, ...; several times for several limits. Default: 50ms.",
    ),
    click.Option(
        ["--objective"],
        multiple=True,
        type=click.Choice(list(METRIC_NAMES)),
        help="A metric without a limit that the front is drawn in too; several times for several.",
    ),
    click.Option(["--model"], metavar="SPEC", help=_MODEL),
    click.Option(["--weights"], metavar="FILE", help="Trained weights: .safetensors, or a .pt/.pth state dict."),
    click.Option(["--data"], metavar="SPEC", help=_DATA),
    click.Option(["--evaluate"], metavar="SPEC", help=_EVALUATE),
    click.Option(
        ["--batch-size"], type=click.IntRange(min=1), help="Inputs per inference. Default: 1, or the demo's own."
    ),
    click.Option(
        ["--device"],
        default="cpu",
        show_default=True,
        help="cpu, openvino, torch, ssh:USER@HOST, bitfusion; `automc devices` lists more.",
        shell_complete=plug_in_names,
    ),
    click.Option(
        ["--threads"], type=click.IntRange(min=1), default=1, show_default=True, help="Threads of an inference."
    ),
    click.Option(
        ["--agent"],
        default="auto",
        show_default=True,
        help=_AGENT,
        shell_complete=plug_in_names,
    ),
    click.Option(
        ["--space"],
        default="default",
        show_default=True,
        help="Which choices each layer has.",
        shell_complete=plug_in_names,
    ),
    click.Option(["--criterion"], default="obs", show_default=True, metavar="NAME", help=_CRITERION),
    click.Option(
        ["--trials"],
        type=click.IntRange(min=1),
        default=60,
        show_default=True,
        help="Policies to evaluate; a tenth more after each round of measuring that missed.",
    ),
    click.Option(
        ["--timeout"],
        type=duration,
        metavar="DURATION",
        help="Time for the whole job, such as 30m, shared by profile, search and recovery; what is begun is finished.",
    ),
    click.Option(["--seed"], type=int, default=0, show_default=True, help="The same seed proposes the same trials."),
    click.Option(["--warm-start"], metavar="RUN|FILE", help=_WARM_START),
    click.Option(["--recover"], type=duration, default="1m", show_default=True, metavar="DURATION", help=_RECOVER),
    click.Option(
        ["--fidelity"],
        type=click.Choice(get_args(Fidelity)),
        default="auto",
        show_default=True,
        help=_FIDELITY,
    ),
    click.Option(
        ["--finetune-epochs"], type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help=_FINETUNE
    ),
    click.Option(["--profile"], default="30s", show_default=True, metavar="DURATION", help=_PROFILE),
    click.Option(
        ["--name"], help="Name of the run; a name that exists is resumed. Default: made from the model and time."
    ),
    click.Option(["--runs"], default="runs", show_default=True, metavar="FOLDER", help="Where runs are recorded."),
    click.Option(["--tracking-uri"], metavar="URI", help=_TRACKING),
    click.Option(["--workers"], type=worker_count, default="1", show_default=True, metavar="N|auto", help=_WORKERS),
    click.Option(
        ["--worker-cpus"],
        type=click.FloatRange(min=0, min_open=True),
        default=1.0,
        show_default=True,
        help=_WORKER_CPUS,
    ),
    click.Option(["--ray-address"], metavar="ADDRESS", help="Ray cluster to evaluate on. Default: this machine."),
    click.Option(["--ray-env"], metavar="FILE", help=_RAY_ENV),
    click.Option(["--trial-timeout"], type=duration, metavar="DURATION", help=_TRIAL_TIMEOUT),
    click.Option(["--sync"], is_flag=True, help=_SYNC),
    click.Option(
        ["--mlflow-trials"],
        type=click.Choice(get_args(RecordedTrials)),
        default="front",
        show_default=True,
        help="Which trials get an MLflow run of their own.",
    ),
    click.Option(["--register"], metavar="NAME", help=_REGISTER),
)


def job_options(command: F) -> F:
    """Decorate a command function with the recipe argument and every option of JOB_OPTIONS, in this order."""
    recipe = click.Argument(["recipe"], required=False, type=click.Path(path_type=Path), metavar="[RECIPE.yaml]")
    existing: list[click.Parameter] = command.__dict__.setdefault("__click_params__", [])
    existing.extend(reversed([recipe, *JOB_OPTIONS]))  # click collects parameters last first
    return command


def settings(context: click.Context) -> dict[str, Any]:
    """Field -> value of the search that the command line describes: flags first, then the recipe, then the defaults.

    Raises:
        InputError: the recipe cannot be read, or has unknown keys or unusable values; names all of them.
    """
    path: Path | None = context.params["recipe"]
    written = read_recipe(path, {_key(option): option for option in JOB_OPTIONS}) if path else {}
    found = {_key(option): _value(context, _key(option), written) for option in JOB_OPTIONS}
    return {**found, "made_in": written.get("made_in")}


def _value(context: click.Context, key: str, written: dict[str, Any]) -> Any:
    given = context.get_parameter_source(key) is not ParameterSource.DEFAULT
    return written[key] if key in written and not given else context.params[key]


def _key(option: click.Option) -> str:
    assert option.name is not None
    return option.name
