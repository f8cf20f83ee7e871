"""Where the files of a job lie: relative paths are of the current folder, or else of the one that its run was made in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automc.errors import InputError

__all__ = ["located", "remembered"]

_FUNCTIONS = ("model", "data", "evaluate")
_FILES = ("weights", "ray_env", "warm_start")
_FOLDERS = ("npz", "imagefolder", "cifar10")


def located(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a job; a relative path that is not there from here leads to the folder `made_in`.

    Raises:
        InputError: it is not there either; names both places.
    """
    found = dict(fields)
    base = Path(str(found.get("made_in") or ""))
    if base.resolve() != Path.cwd():
        named = [name for name in (*_FUNCTIONS, *_FILES) if found.get(name)]
        found.update({name: _led(name, str(found[name]), base) for name in named})
    return found


def remembered(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as a run keeps them: with the current folder, or with that of an earlier attempt where it has some of the files.

    Paths of files that are here and not there are then absolute.
    """
    found = located(fields)
    if found == dict(fields):
        return {**fields, "made_in": os.getcwd()}
    here = [name for name in (*_FUNCTIONS, *_FILES) if fields.get(name) and found[name] == fields[name]]
    return {**fields, **{name: _absolute(name, str(fields[name])) for name in here}}


def _absolute(name: str, spec: str) -> str:
    before, path, after = _split(name, spec)
    return f"{before}{Path(path).absolute()}{after}" if path and Path(path).exists() else spec


def _led(name: str, spec: str, base: Path) -> str:
    before, path, after = _split(name, spec)
    if not path or Path(path).expanduser().is_absolute() or Path(path).exists():
        return spec
    if (base / path).exists():
        return f"{before}{base / path}{after}"
    if name == "warm_start":  # which may be the name of a run
        return spec
    raise InputError(
        f"There is no {Path(path).absolute()}, and no {base / path} where the run was made.", remedy="Put it back."
    )


def _split(name: str, spec: str) -> tuple[str, str, str]:
    """What stands before the path in a spec, the path, "" where there is none, and what stands behind it."""
    if name in _FILES:
        return "", spec, ""
    kind, _, place = spec.partition(":")
    if name == "data" and kind in _FOLDERS:
        path, mark, query = place.partition("?")
        return f"{kind}:", path, f"{mark}{query}"
    path, _, function = spec.rpartition(":")
    return ("", path, f":{function}") if path.endswith(".py") else ("", "", spec)
