"""A user's own functions by name: `file.py:function` and `package.module:function`."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from automc.errors import InputError, MissingError

__all__ = ["call", "is_function", "load_function"]


def is_function(spec: str) -> bool:
    """Whether a spec has the form file.py:function, or package.module:function of a package that is installed."""
    place, separator, name = spec.rpartition(":")
    if not separator or not name.isidentifier():
        return False
    return place.endswith(".py") or (place.replace(".", "_").isidentifier() and _installed(place.partition(".")[0]))


def load_function(spec: str) -> Callable[..., Any]:
    """The function that `file.py:function` or `package.module:function` names; its file is executed once per process.

    Raises:
        InputError: no such file, no such function in it (carries the closest match), or the file raises when executed.
        MissingError: the package is not installed, or the file imports one that is not.
    """
    place, _, name = spec.rpartition(":")
    module = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
    function = getattr(module, name, None)
    if function is None:
        close = difflib.get_close_matches(name, [n for n in vars(module) if not n.startswith("_")], n=1)
        hint = f"Did you mean {close[0]!r}?" if close else "Check the name after the colon."
        raise InputError(f"{place} has no function {name!r}.", remedy=hint)
    if not callable(function):
        raise InputError(
            f"{name!r} in {place} is of type {type(function).__name__}, not a function.", remedy="Name a function."
        )
    return function


def call(function: Callable[..., Any], spec: str, **offered: Any) -> Any:
    """Call a user's function with those of the `offered` arguments whose names it takes.

    Raises:
        InputError: the function raises, or needs an argument that is not offered.
    """
    parameters = inspect.signature(function).parameters if not inspect.isbuiltin(function) else {}
    taken = {name: value for name, value in offered.items() if name in parameters}
    try:
        return function(**taken)
    except Exception as error:
        raise InputError(
            f"{spec} raised {type(error).__name__}: {error}.",
            remedy=f"Make it run on its own; it may take: {', '.join(offered) or 'no arguments'}.",
        ) from error


def _installed(package: str) -> bool:
    return package in sys.modules or importlib.util.find_spec(package) is not None


def _from_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise InputError(f"There is no file {path}.", remedy="Check the path before the colon.")
    name = f"automc_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} cannot be imported.", remedy="Name a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # so that it can import its neighbours
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        raise _import_fault(str(path), error) from error
    return module


def _from_package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise _import_fault(name, error) from error


def _import_fault(place: str, error: BaseException) -> InputError | MissingError | BaseException:
    if isinstance(error, ModuleNotFoundError):
        return MissingError(
            f"{place} imports {error.name!r}, which is not installed.", remedy=f"pip install {error.name}"
        )
    if isinstance(error, Exception):
        return InputError(
            f"{place} raised {type(error).__name__} when imported: {error}.", remedy="Make it import on its own."
        )
    return error
