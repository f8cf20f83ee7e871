"""Each example runs as it stands and compresses its model."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = ("image_classifier", "keyword_spotting", "transformer", "detector")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_compresses_its_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOMC_CACHE", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = runpy.run_path(str(FOLDER / f"{name}.py"))["main"](trials=6, recover="0", profile="3s")
    dense, best = result.summary.dense, result.summary.best
    assert best is not None
    assert best.holds
    assert len(result.policy) > 0
    assert best.cost.macs < dense.cost.macs or best.cost.size_bytes < dense.cost.size_bytes
