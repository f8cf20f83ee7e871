"""The wheel holds the tree, as `automc` and nothing else. Built from a copy, so that no stale build folder takes part."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {
    "automc": "automc",
    "agents": "automc/agents",
    "search_spaces": "automc/search_spaces",
    "dashboards": "automc/dashboards",
}
SHIPPED = {".html", ".json", ".md", ".py", ".safetensors", ".typed", ".yaml"}
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
BUILD_FILES = ("pyproject.toml", "README.md", "LICENSE")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=IGNORED)
    for name in BUILD_FILES:
        shutil.copy(ROOT / name, source)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def _packed(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_its_files_are_those_of_the_tree(wheel: Path) -> None:
    expected = set()
    for room, target in ROOMS.items():
        for path in (ROOT / room).rglob("*"):
            hidden = any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(ROOT).parts)
            if path.is_file() and not hidden and path.suffix in SHIPPED:
                expected.add(f"{target}/{path.relative_to(ROOT / room).as_posix()}")
    assert _packed(wheel) == expected


def test_it_holds_one_top_level_package(wheel: Path) -> None:
    assert {PurePosixPath(name).parts[0] for name in _packed(wheel)} == {"automc"}


def test_it_says_what_it_needs_and_how_it_is_called(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        texts = {
            name.partition(".dist-info/")[2]: archive.read(name).decode()
            for name in archive.namelist()
            if ".dist-info/" in name
        }
    assert "automc = automc.cli.main:main" in texts["entry_points.txt"]
    assert "Apache License" in texts["licenses/LICENSE"]


def test_every_required_package_is_pinned(wheel: Path) -> None:
    """An unpinned one would make a fresh install today differ from one in a year."""
    required = [_name(line) for line in _metadata(wheel).splitlines() if _is_required(line)]
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {"torch", "pytest"} <= set(required)
    assert [name for name in required if name not in pinned] == []


def _metadata(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return next(archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))


def _is_required(line: str) -> bool:
    return line.startswith("Requires-Dist: ") and ("extra ==" not in line or 'extra == "test"' in line)


def _name(line: str) -> str:
    return line.removeprefix("Requires-Dist: ").partition(">")[0].partition("[")[0].strip().lower().replace("_", "-")
