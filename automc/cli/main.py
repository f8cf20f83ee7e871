"""The entry point: the verbs in the order of use, and every way a command can end, as one line and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence

import click

from automc import __version__
from automc.cli import (
    bench,
    check,
    compare,
    complete,
    dashboard,
    devices,
    explain,
    export,
    finetune,
    profile,
    runs,
    search,
    show,
    solve,
    track,
)
from automc.cli.quiet import silence_libraries
from automc.cli.report import error_record, print_error, print_json
from automc.errors import AutomcError, DiskError, InputError

__all__ = ["cli", "main"]

INTERRUPTED = 130
_FULL_OR_READ_ONLY = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_EPILOG = """\b
Examples:
  automc search --budget 50ms
  automc export --run my-run --format onnx --out deploy
"""


class Verbs(click.Group):
    """A group that lists its commands in the order in which they were added: the order of use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, as added."""
        return list(self.commands)


@click.group(
    cls=Verbs, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, message="automc %(version)s")
@click.option(
    "--debug", is_flag=True, help="Show tracebacks and the warnings of other libraries (also AUTOMC_DEBUG=1)."
)
def cli(debug: bool) -> None:
    """Compress a trained PyTorch model, layer by layer, until it measurably fits a budget.

    Exit codes: 0 done; 1 unexpected; 2 bad input; 3 budget not reachable; 4 something needed is missing; 130 interrupted.
    """
    if debug:
        os.environ["AUTOMC_DEBUG"] = "1"
    if not _debugging():
        silence_libraries()


_IN_ORDER_OF_USE = (
    check.check,
    search.search,
    runs.runs,
    show.show,
    compare.compare,
    solve.solve,
    explain.explain,
    dashboard.dashboard,
    finetune.finetune,
    export.export,
    track.track,
    profile.profile,
    devices.devices,
    bench.bench,
    complete.completion,
)
for _verb in _IN_ORDER_OF_USE:
    cli.add_command(_verb)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; never raises."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        code = cli.main(given, prog_name="automc", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        if as_json:
            print_json(error_record(type(error).__name__, error.format_message(), "", InputError.exit_code))
        return InputError.exit_code
    except (click.Abort, KeyboardInterrupt):
        print_error(
            "Interrupted.",
            "What was recorded is kept: `automc runs` lists it, `automc search runs/NAME/config.yaml` goes on.",
        )
        return INTERRUPTED
    except Exception as error:  # the one place where anything may arrive: it becomes a sentence and an exit code
        return _explain(error, as_json=as_json)


def _explain(error: Exception, *, as_json: bool) -> int:
    if _debugging():
        traceback.print_exception(error)
    known = error if isinstance(error, AutomcError) else _as_known(error)
    message = Exception.__str__(known)
    print_error(message, known.remedy)
    if as_json:
        print_json(error_record(type(known).__name__, message, known.remedy, known.exit_code))
    return known.exit_code


def _as_known(error: Exception) -> AutomcError:
    if isinstance(error, OSError) and error.errno in _FULL_OR_READ_ONLY:
        where = f" {error.filename}" if error.filename else ""
        return DiskError(f"Cannot write{where}: {error.strerror}.", remedy="Free some space or choose another folder.")
    lines = str(error).strip().splitlines() or ["no message"]
    remedy = "" if _debugging() else "This is not expected: `automc --debug ...` shows where it happened."
    return AutomcError(f"{type(error).__name__}: {lines[0]}", remedy=remedy)


def _debugging() -> bool:
    return os.environ.get("AUTOMC_DEBUG", "") not in ("", "0")
