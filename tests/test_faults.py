"""`automc check`: each bad input is one sentence with a remedy, all of them at once, and a sound task has none."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_data import write_models, write_npz, write_python
from torch import Tensor, nn

from automc.budget import Budget
from automc.errors import AutomcError, InputError, MissingError
from automc.evaluate.data import Data, TensorSplit
from automc.evaluate.inputs import Fault, check_inputs
from automc.evaluate.score import Score
from automc.faults import check_budget, find_faults, find_setting_faults, raise_faults
from automc.recipe import Job


@pytest.fixture
def sound(tmp_path: Path) -> dict[str, Any]:
    """Settings of a small search that can start."""
    return {
        "budget": ("60%", "4MB"),
        "model": f"{write_models(tmp_path)}:build",
        "data": write_npz(tmp_path / "a.npz"),
        "batch_size": 4,
        "device": "cpu",
        "agent": "ilp",
        "space": "default",
        "criterion": "obs",
        "runs": str(tmp_path / "runs"),
        "timeout": "10m",
        "recover": "0",
        "trials": 50,
        "name": "one",
    }


def test_a_sound_search_has_no_faults_and_leaves_nothing_behind(sound: dict[str, Any], tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    assert find_faults(Job(**sound)) == []
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "__pycache__"] == before


def test_the_defaults_have_no_faults() -> None:
    assert find_faults(Job()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": ("50 parsecs",)}, "'50 parsecs' is not a budget. Write a number and a unit"),
        ({"budget": ("0ms",)}, "The budget '0ms' is not above zero"),
        ({"budget": ("-3MB",)}, "The budget '-3MB' is not above zero"),
        ({"budget": ("50ms", "60%")}, "Two budgets limit latency_s. Give one limit per metric"),
        ({"budget": ()}, "No budget was given"),
        (
            {"budget": ("30mJ",)},
            "The device 'cpu' has no energy figures, so it cannot hold a budget on them. Energy cannot be measured: ",
        ),
        ({"profile": "banana"}, "--profile 'banana' is not a duration"),
        ({"agent": "nesadapt"}, "no agent called 'nesadapt'. Did you mean 'netadapt'?"),
        ({"device": "cpo"}, "no device called 'cpo'. Did you mean 'cpu'?"),
        ({"space": "defualt"}, "no space called 'defualt'. Did you mean 'default'?"),
        (
            {"criterion": "tailor"},
            "no pruning criterion called 'tailor'. Did you mean 'taylor'? Known pruning criteria: apoz,",
        ),
        ({"model": "dmeo"}, "no model called 'dmeo'. Did you mean 'demo'?"),
        ({"model": "nowhere.py:build"}, "There is no file"),
        ({"data": "digit"}, "no data set called 'digit'. Did you mean 'digits'?"),
        ({"data": "npz:nowhere.npz"}, "There is no file"),
        ({"weights": "nowhere.pt"}, "There is no weights file nowhere.pt. Check the path"),
        ({"evaluate": "f1"}, "'f1' is not a score. Write file.py:function"),
        ({"batch_size": 0}, "--batch-size is 0. Give 1 or more"),
        (
            {"batch_size": 41},
            "A batch of 41 is larger than the largest split (train, 40 samples). Give --batch-size 40",
        ),
        ({"threads": 0}, "--threads is 0. Give 1 or more"),
        ({"trials": -1}, "--trials is -1. Give 1 or more"),
        ({"seed": -1}, "--seed is -1. Give 0 or more"),
        ({"timeout": "soon"}, "--timeout 'soon' is not a duration. Write 90s, 10m or 1h"),
        ({"recover": "4MB"}, "--recover '4MB' is not a duration"),
        ({"trial_timeout": ""}, "--trial-timeout '' is not a duration"),
        ({"name": "a/b"}, "'a/b' cannot name a run"),
    ],
)
def test_each_setting_that_is_wrong_is_one_fault(sound: dict[str, Any], change: dict[str, Any], message: str) -> None:
    faults = find_faults(Job(**{**sound, **change}))
    assert len(faults) == 1
    assert message in faults[0]
    assert faults[0].exit_code == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 50}, "budget is 50. Write 50ms, 60% or 2MB"),
        ({"budget": ("50ms", 60)}, "budget is 60."),
        ({"objective": 1}, "objective is 1. Write latency"),
        ({"trials": "2"}, "trials is '2'. Give a whole number"),
        ({"trials": True}, "trials is True"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"worker_cpus": "4"}, "worker_cpus is '4'. Give a number"),
        ({"recover": None}, "recover is None. Write 90s, 10m or 1h, or give seconds"),
        ({"agent": 3}, "agent is 3. Give a text"),
    ],
)
def test_a_setting_of_another_type_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Job(**change)


def test_what_is_natural_in_python_is_taken(tmp_path: Path) -> None:
    job = Job(recover=0, timeout=60, profile=2.5, budget="50%", trials=np.int64(3), runs=tmp_path, objective=["size"])  # type: ignore[arg-type]
    assert job == Job(
        recover="0s",
        timeout="60s",
        profile="2.5s",
        budget=("50%",),
        trials=3,
        runs=str(tmp_path),
        objective=("size",),
    )
    assert find_setting_faults(job) == []
    assert find_setting_faults(Job(recover=-1)) == [
        "--recover '-1s' is not a duration. Write 90s, 10m or 1h; 0 is off."
    ]  # type: ignore[arg-type]


def test_the_settings_are_checked_without_loading_anything(sound: dict[str, Any]) -> None:
    unloadable = {"model": "nowhere.py:build", "data": "npz:nowhere.npz", "weights": "nowhere.pt", "evaluate": "f1"}
    assert find_setting_faults(Job(**{**sound, **unloadable})) == []
    wrong = {"budget": ("30mJ",), "agent": "ipl", "seed": -1, "profile": "banana", "name": "a/b"}
    faults = find_setting_faults(Job(**{**sound, **unloadable, **wrong}))
    assert len(faults) == len(wrong)
    assert find_faults(Job(**{**sound, **wrong})) == faults


def test_a_device_that_is_not_known_may_tell_every_metric() -> None:
    assert check_budget(Budget.parse("30mJ", "50ms"), "somebodys-board") == []
    assert len(check_budget(Budget.parse("30mJ", "50ms"), "cpu")) == 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("pair", "The model returns several outputs, and accuracy needs one, or one called logits. Give your own"),
        ("mean", "The model returns shape (1, 4) for 4 samples. Return one output per sample"),
        ("flat", "The model returns shape (4,), and accuracy needs (batch, classes). Give your own score"),
        ("gray", "does not take samples of shape (3, 8, 8): RuntimeError"),
        ("gray", "Its first layer, conv, takes 1 channels."),
        ("half", "The model's conv.weight is float16. Return model.float()"),
        ("nan_weights", "The model's conv.weight holds NaN or infinite values."),
        ("nan_outputs", "The model returns NaN or infinite values. Check its weights"),
        ("empty", "The model has no parameters."),
        ("number", "returned int, not a model. Return a torch.nn.Module"),
        ("two_classes", "The validation labels hold 3, and the model has 2 outputs (labels 0 to 1)."),
    ],
)
def test_each_model_that_does_not_fit_is_named(sound: dict[str, Any], model: str, message: str) -> None:
    path = sound["model"].rpartition(":")[0]
    faults = find_faults(Job(**{**sound, "model": f"{path}:{model}"}))
    assert any(message in fault for fault in faults)
    assert len(faults) == (2 if model == "two_classes" else 1)


def test_of_several_outputs_accuracy_takes_the_logits(sound: dict[str, Any]) -> None:
    path = sound["model"].rpartition(":")[0]
    assert find_faults(Job(**{**sound, "model": f"{path}:dictionary"})) == []


def images(count: int = 80, **change: Any) -> dict[str, Any]:
    """Float images (count, 3, 8, 8)."""
    return {"x": np.random.RandomState(0).randn(count, 3, 8, 8), **change}


def spoilt(value: float) -> np.ndarray:
    """The images with one value replaced, far from the first batch."""
    x = images()["x"]
    x[77, 1, 3, 3] = value
    return x


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (images(x=spoilt(float("nan"))), "inputs hold NaN or infinite values. Remove or replace"),
        (images(x=spoilt(float("inf"))), "inputs hold NaN or infinite values. Remove or replace"),
        (images(x=np.zeros((80, 8, 8), np.uint8)), "x in"),
        (images(x=np.zeros((80, 5)), y=np.arange(80) % 4), "does not take samples of shape (5,)"),
        (images(y=np.arange(80) % 4 - 1), "The validation labels hold -1, and the model has 4 outputs"),
        (images(y=np.linspace(0, 1, 80)), "The validation targets are float32, not class numbers. Give your own score"),
        (images(split=np.array(["train"] * 80), y=np.full(80, 9)), "labels hold 9"),
        (images(split=np.array(["calibration"] * 80)), "The validation split is empty."),
        (images(0, y=np.arange(0)), "0 samples (x)"),
    ],
)
def test_each_data_set_that_does_not_fit_is_named(
    sound: dict[str, Any], tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    faults = find_faults(Job(**{**sound, "data": write_npz(tmp_path / "b.npz", **arrays)}))
    assert message in " ".join(faults)


def test_weights_that_do_not_fit_are_named(sound: dict[str, Any], tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(3, 8)}, tmp_path / "w.pt")
    (fault,) = find_faults(Job(**{**sound, "weights": str(tmp_path / "w.pt")}))
    assert "do not fit: conv.weight is 8x3x3x3 in the model, missing from the file" in fault


def test_all_faults_are_reported_at_once(sound: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    wrong = {"budget": ("50 parsecs",), "agent": "ipl", "device": "gpu", "model": "nowhere.py:f", "data": "npz:nowhere"}
    faults = find_faults(Job(**{**sound, **wrong, "evaluate": "none.py:f", "runs": str(tmp_path / "file" / "runs")}))
    assert len(faults) == 7
    assert len(set(faults)) == 7


def test_a_run_folder_that_is_a_file_is_a_fault_of_exit_code_4(sound: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (fault,) = find_faults(Job(**{**sound, "runs": str(tmp_path / "file" / "runs")}))
    assert fault == f"{tmp_path / 'file'} is a file, so no run can be kept there. Point --runs at a folder."
    assert fault.exit_code == 4


def test_a_read_only_run_folder_is_a_fault(
    sound: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """os.access is asked, and answered here, since a superuser may write anywhere."""
    asked: list[Path] = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append(path) or bool(mode != os.W_OK | os.X_OK))
    (fault,) = find_faults(Job(**{**sound, "runs": str(tmp_path / "not" / "there")}))
    assert f"The folder {tmp_path} is read-only." in fault
    assert asked == [tmp_path]


SCORES = """
def wrong(model, loader): raise KeyError("boxes")
def nothing(model, loader): return None
def one(model): return 1.0
def count(model, loader): return sum(len(model(x)) for x, y in loader)
"""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("wrong", "The score wrong raised KeyError: 'boxes'. It is called with (model, loader)"),
        ("nothing", "nothing returned None. Return one finite number, higher is better."),
        ("one", "The score one raised TypeError"),
        ("count", None),
    ],
)
def test_a_score_is_tried_on_a_few_samples(
    sound: dict[str, Any], tmp_path: Path, function: str, message: str | None
) -> None:
    path = write_python(tmp_path, SCORES, "scores.py")
    faults = find_faults(Job(**{**sound, "evaluate": f"{path}:{function}"}))
    assert [message in fault for fault in faults if message] == ([True] if message else [])
    assert len(faults) == (1 if message else 0)


# objects


class Broken:
    """A loader that cannot read."""

    def __iter__(self) -> Any:
        raise OSError("disk gone")


X, Y = torch.randn(8, 3), torch.arange(8) % 4
BATCHES = [(X, Y)]


def test_objects_are_checked_the_same_way() -> None:
    model = nn.Linear(3, 4)
    assert check_inputs(model, Data(None, BATCHES, BATCHES, None, "sound")) == []
    (fault,) = check_inputs(model, Data(None, [X], BATCHES, [X], "no labels"))
    assert "no targets" in fault


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "The calibration split is empty. Give it at least one batch."),
        (TensorSplit(X[:0], Y[:0], 4), "The calibration split is empty."),
        (Broken(), "Reading the calibration split raised OSError: disk gone."),
        ([{"text": "x"}], "A batch of the data is a dictionary of text, not tensors. Let the loader yield"),
        ([{"x": X}], "unexpected keyword argument 'x'. Name the inputs as the model's forward does"),
        ([(X * float("nan"), Y)], "The calibration inputs hold NaN"),
    ],
)
def test_a_loader_that_does_not_work_is_named(loader: Any, message: str) -> None:
    faults = check_inputs(nn.Linear(3, 4), Data(None, loader, BATCHES, None, "bad"))
    assert len(faults) == 1
    assert message in faults[0]


def test_samples_of_different_sizes_are_one_fault() -> None:
    def batches(*sides: int) -> list[Any]:
        return [(torch.randn(1, 3, side, 8), torch.tensor([0])) for side in sides]

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    (fault,) = check_inputs(model, Data(batches(8, 7), batches(8, 8), batches(8, 9), batches(6, 5), "photos"))
    assert fault.startswith("The samples differ in size: (3, 8, 8) (calibration) and (3, 9, 8) (validation). Resize")
    (fault,) = check_inputs(model, Data(batches(8, 7), batches(8), batches(8), None, "photos"))
    assert "(3, 8, 8) (train) and (3, 7, 8) (train)" in fault
    assert check_inputs(model, Data(batches(6, 6), batches(8, 8), batches(8), None, "photos")) == []


def test_a_last_batch_that_is_smaller_is_no_fault() -> None:
    batches = [(X, Y), (X[:3], Y[:3])]
    assert check_inputs(nn.Linear(3, 4), Data(None, batches, batches, None, "sound")) == []


def test_an_own_score_called_accuracy_may_compare_with_values() -> None:
    score = Score("accuracy", lambda model, loader: -sum(float((model(x) - y).abs().mean()) for x, y in loader))
    batches = [(X, torch.randn(8, 4))]
    assert check_inputs(nn.Linear(3, 4), Data(None, batches, batches, None, "regression"), score) == []


def test_labels_outside_the_first_batch_are_found_in_memory() -> None:
    y = Y.clone()
    y[-1] = 4
    split = TensorSplit(X, y, 2)
    (fault,) = check_inputs(nn.Linear(3, 4), Data(None, BATCHES, BATCHES, split, "late"))
    assert "The test labels hold 4" in fault


def test_checking_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert check_inputs(model, Data(None, BATCHES, BATCHES, None, "sound")) == []
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_several_inputs_are_passed_in_order() -> None:
    class Difference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 4)

        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            out: Tensor = self.fc(first) - self.fc(second[:, :3])
            return out

    batches = [((X, torch.randn(8, 5)), Y)]
    assert check_inputs(Difference(), Data(None, batches, batches, None, "two")) == []
    turned = [((torch.randn(8, 5), X), Y)]
    (fault,) = check_inputs(Difference(), Data(None, turned, turned, None, "turned"))
    assert "does not take samples of shape (5,) and (3,)" in fault


def test_unlabelled_data_does_for_a_score_that_needs_no_labels() -> None:
    score = Score("spread", lambda model, loader: sum(float(model(x).std()) for x in loader))
    assert check_inputs(nn.Linear(3, 4), Data(None, [X], [X], None, "inputs alone"), score) == []


@pytest.mark.parametrize(("codes", "error"), [((2,), InputError), ((2, 4), InputError), ((4, 4), MissingError)])
def test_faults_stop_a_search_with_all_sentences(codes: tuple[int, ...], error: type[AutomcError]) -> None:
    faults = [Fault(f"Fault {number}.", "Mend it.", code) for number, code in enumerate(codes)]
    with pytest.raises(error) as caught:
        raise_faults(faults)
    assert str(caught.value) == "\n".join(faults)
    raise_faults([])
