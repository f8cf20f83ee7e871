"""What the package promises about being imported: light, and `__all__` says what it offers."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import automc

HEAVY = ("torch", "onnx", "onnxruntime", "mlflow", "ray", "optuna", "scipy", "sklearn", "plotly", "pandas")
LIGHT = ("automc", "automc.cli.main", "automc.rundir", "automc.registry", "automc.result")
MAPPED = ("agents", "dashboards", "search_spaces")


def _modules() -> list[str]:
    """Every module but __main__; an installation in place keeps the mapped folders outside of automc's own."""
    names = {"automc"}
    for package in ("automc", *(f"automc.{folder}" for folder in MAPPED)):
        path = importlib.import_module(package).__path__
        names |= {package, *(info.name for info in pkgutil.walk_packages(path, f"{package}."))}
    return sorted(names - {"automc.__main__"})


MODULES = _modules()


@pytest.mark.parametrize("module", LIGHT)
def test_importing_it_stays_light(module: str) -> None:
    """In a process of its own, since this one has imported everything."""
    script = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_there_are_modules_to_check() -> None:
    assert {"automc.agents", "automc.cli.main", "automc.dashboards", "automc.search_spaces"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_every_listed_name_exists(name: str) -> None:
    module = importlib.import_module(name)
    assert [missing for missing in getattr(module, "__all__", ()) if not hasattr(module, missing)] == []


@pytest.mark.parametrize("name", MODULES)
def test_modules_take_from_each_other_only_what_is_listed(name: str) -> None:
    """A name that another module imports is part of the interface, so it stands in `__all__`."""
    assert [f"{source}.{taken}" for source, taken in _taken(name) if not _offered(source, taken)] == []


def test_the_package_offers_what_it_lists() -> None:
    assert [name for name in automc.__all__ if not hasattr(automc, name)] == []


@pytest.mark.parametrize("folder", MAPPED)
def test_a_plug_in_folder_says_what_it_is_called(folder: str) -> None:
    """Imported from the repository root under its folder's name, it would be a second copy of the package."""
    package = importlib.import_module(f"automc.{folder}")
    assert package.__file__ is not None
    script = f"exec(compile(open({package.__file__!r}).read(), 'x', 'exec'), {{'__name__': {folder!r}}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"import automc.{folder}" in done.stderr


def _taken(name: str) -> Iterator[tuple[str, str]]:
    """(module, name) of each `from module import name` of automc's own modules."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    package = name if spec.submodule_search_locations else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(Path(spec.origin).read_text())):
        if isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            if source.partition(".")[0] == "automc":
                yield from ((source, alias.name) for alias in node.names)


def _offered(source: str, name: str) -> bool:
    module = importlib.import_module(source)
    submodule = hasattr(module, "__path__") and importlib.util.find_spec(f"{source}.{name}") is not None
    return submodule or name in (*getattr(module, "__all__", ()), "__version__")
