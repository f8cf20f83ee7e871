"""`automc dashboard`: the live app in a browser, on this machine alone."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from pathlib import Path

import click

from automc import registry
from automc.cli.report import stderr
from automc.errors import InputError, MissingError

__all__ = ["dashboard"]

_EPILOG = """\b
Examples:
  automc dashboard
  automc dashboard --runs /data/runs --port 8600 --no-browser
"""


@click.command(epilog=_EPILOG, short_help="Watch and explore runs in a browser.")
@click.option("--runs", "folder", default="runs", show_default=True, metavar="FOLDER", help="Where runs are recorded.")
@click.option("--port", type=click.IntRange(1, 65535), default=8501, show_default=True, help="Port on 127.0.0.1.")
@click.option("--no-browser", is_flag=True, help="Print the address only.")
def dashboard(folder: str, port: int, no_browser: bool) -> None:
    """Watch running searches and explore recorded ones in a browser, until ctrl-C.

    The app answers on 127.0.0.1 only, and never writes to the folder of a run.
    """
    if importlib.util.find_spec("streamlit") is None:
        raise MissingError(
            "The dashboard needs Streamlit, which is not installed.", remedy="`pip install automc[dashboard]`."
        )
    if not Path(folder).is_dir():
        raise InputError(f"There is no folder {folder!r}.", remedy="`automc search` makes it, or give --runs.")
    _refuse_taken(port)
    stderr().print(f"http://127.0.0.1:{port} shows the runs in {folder}; ctrl-C ends it.", soft_wrap=True)
    # In place of this process, so that ctrl-C and other signals reach the app.
    command = [*_COMMAND, *_options(port, no_browser), registry.load("figures", "app"), "--", folder]
    os.execve(sys.executable, command, {**os.environ, "PYTHONSAFEPATH": "1"})


_COMMAND = [sys.executable, "-m", "streamlit", "run"]


def _refuse_taken(port: int) -> None:
    with socket.socket() as taken:
        if taken.connect_ex(("127.0.0.1", port)) == 0:
            raise InputError(f"Something answers on port {port} already.", remedy=f"Give another: --port {port + 1}.")


def _options(port: int, no_browser: bool) -> list[str]:
    settings = {
        "server.address": "127.0.0.1",
        "server.port": str(port),
        "server.headless": str(no_browser).lower(),
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "logger.level": "error",
    }
    return [f"--{name}={value}" for name, value in settings.items()]
