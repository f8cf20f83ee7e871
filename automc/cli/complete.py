"""Shell completion: the names that options and arguments take, and the script that a shell needs."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from automc.errors import InputError

__all__ = ["completion", "plug_in_names", "run_names"]

_FILES = {
    "bash": "~/.bashrc",
    "zsh": "~/.zshrc",
    "fish": "~/.config/fish/completions/automc.fish",
}
_EPILOG = """\b
Examples:
  automc completion bash >> ~/.bashrc
  automc completion fish > ~/.config/fish/completions/automc.fish
"""


@click.command(epilog=_EPILOG, short_help="Print the script for completion in a shell.")
@click.argument("shell", required=False, type=click.Choice(list(_FILES)))
def completion(shell: str | None) -> None:
    """Print the script that completes verbs, options and the names of runs, agents, spaces and devices.

    SHELL is that of $SHELL by default. A new shell then completes.
    """
    name = shell or Path(os.environ.get("SHELL", "")).name
    if name not in _FILES:
        raise InputError(f"There is no completion for the shell {name!r}.", remedy=f"Shells: {', '.join(_FILES)}.")
    from automc.cli.main import cli

    made = get_completion_class(name)
    assert made is not None
    click.echo(made(cli, {}, "automc", "_AUTOMC_COMPLETE").source())


def run_names(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The recorded runs, with their folder as --runs says."""
    from automc.rundir import runs_in

    folder = context.params.get("folder") or context.params.get("runs") or "runs"
    return [CompletionItem(run.name) for run in runs_in(folder) if run.name.startswith(incomplete)]


def plug_in_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What is registered under the option's name: agents, spaces or devices."""
    from automc import registry

    assert parameter.name is not None
    return [CompletionItem(name) for name in registry.names(parameter.name) if name.startswith(incomplete)]
