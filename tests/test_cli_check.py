"""`automc check` from the command line, its help, and what it imports and silences."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_data import write_npz, write_python

from automc.cli.main import cli, main

GUESSING = """
from torch import nn
def build():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    net[4].bias.data[0] = 100.0  # class 0, which no label names
    return net
"""
BRANCHING = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 16, 3), nn.Linear(16, 4)
    def forward(self, x):
        found = self.fc(self.conv(x).relu().mean((2, 3)))
        return found if float(x.mean()) > 0.35 else 2 * found
def build(): return Net()
"""
RAGGED = """
import torch
from torch import nn
def build(): return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
def loaders():
    batches = [(torch.rand(4, 3, side, 8), torch.arange(4)) for side in (8, 8, 7)]
    return batches, batches
"""


@pytest.fixture(autouse=True)
def _loud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Silencing libraries is for processes that end; here it would outlive the test. Runs are recorded in tmp_path."""
    monkeypatch.setattr("automc.cli.main.silence_libraries", lambda: None)
    monkeypatch.delenv("AUTOMC_DEBUG", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def test_naming_the_store_imports_neither_mlflow_nor_torch() -> None:
    script = "import sys, automc.cli.search, automc.track.mlflow; print({'mlflow', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_check_reports_every_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["check", "--model", "nowhere.py:f", "--budget", "50 parsecs", "--data", "npz:nothing.npz"]) == 2
    shown = capsys.readouterr().out
    for part in ("nowhere.py", "50 parsecs", "nothing.npz"):
        assert part in shown
    assert list(tmp_path.iterdir()) == []


def test_check_reports_the_faults_of_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["--profile", "banana", "--seed", "-1", "--name", "a/b", "--budget", "30mJ", "--evaluate", "f1"]
    assert main(["check", *wrong]) == 2
    shown = capsys.readouterr().out
    for part in (
        "--profile 'banana'",
        "--seed is -1",
        "'a/b' cannot name a run",
        "no energy figures",
        "'f1' is not a score",
    ):
        assert part in shown


def test_check_says_what_a_search_would_work_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["faults"] == []
    offered = record["offer"]
    assert offered["layers"] == 22  # ResNet-20: 19 convolutions, two projections, one linear layer
    used = [knob for knob in offered["knobs"].values() if knob["targets"]]  # the default space thins nothing out
    assert len(used) == 3
    assert all(knob["choices"] >= knob["targets"] for knob in used)
    assert main(["check"]) == 0
    shown = capsys.readouterr().out
    assert "22 layers" in shown
    assert all(f"  {name}: " in shown for name, _reason in offered["left_alone"])


def test_control_flow_on_values_is_bad_input_and_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_python(tmp_path, BRANCHING)
    options = ["--model", f"{model}:build", "--data", write_npz(tmp_path / "a.npz"), "--batch-size", "1"]
    assert main(["check", *options]) == 2
    assert "depends on the values of its input" in capsys.readouterr().err
    assert main(["search", *options, "--budget", "60%", "--name", "one", "--tracking-uri", "", "--quiet"]) == 2
    assert "torch.where" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "one").exists()


def test_samples_that_change_their_size_late_are_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = write_python(tmp_path, RAGGED)
    assert main(["check", "--model", f"{mine}:build", "--data", f"{mine}:loaders", "--device", "eyeriss"]) == 2
    assert "The samples differ in size: (3, 8, 8), then (3, 7, 8). Resize" in capsys.readouterr().err


def test_a_search_doubts_a_dense_model_that_guesses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_npz(tmp_path / "a.npz", y=1 + np.arange(80) % 3)
    model = f"{write_python(tmp_path, GUESSING)}:build"
    options = ["--device", "eyeriss", "--budget", "60%", "--trials", "2", "--recover", "0", "--tracking-uri", ""]
    assert main(["search", "--model", model, "--data", data, "--batch-size", "1", *options, "--quiet"]) == 0
    shown = capsys.readouterr().err
    assert shown.count("no more than guessing among its 4 classes") == 1


def test_check_ends_with_the_exit_code_of_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    assert main(["check"]) == 4


def test_libraries_are_silent_and_automc_is_not() -> None:
    script = (
        "import logging, warnings; from automc.cli.quiet import silence_libraries; silence_libraries();"
        "logging.getLogger('mlflow').warning('a log line'); warnings.warn('a warning');"
        "warnings.warn_explicit('ours', UserWarning, 'x.py', 1, module='automc.track.mlflow')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "Warning: ours"


@pytest.mark.parametrize("verb", list(cli.commands))
def test_help_ends_with_two_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    examples = capsys.readouterr().out.partition("Examples:")[2].strip().splitlines()
    assert len(examples) == 2
    assert all(line.strip().startswith(f"automc {verb}") for line in examples)


def test_the_verbs_stand_in_the_order_of_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out.partition("Commands:")[2]
    order = [shown.index(f"  {verb} ") for verb in ("check", "search", "runs", "show", "export")]
    assert order == sorted(order)


def test_runs_says_how_to_make_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    assert "automc search" in capsys.readouterr().out
