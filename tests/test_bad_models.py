"""Models and data that are unusual or broken: each is worked on, or refused in one sentence, before anything is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import images, make
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import automc
from automc.calibrate import calibrate
from automc.compression.apply import Stitcher
from automc.errors import InputError
from automc.evaluate.data import Data
from automc.evaluate.inputs import check_inputs, check_weights
from automc.evaluate.models import model_digest
from automc.evaluate.score import Score
from automc.export.onnx import build_onnx
from automc.export.torch_export import build_pt2
from automc.export.verify import relative_error
from automc.policy import LowRank, Policy, Prune, Quantize
from automc.tracing.trace import Traced, trace
from automc.tracing.unwrap import unwrapped


class Net(nn.Module):
    """Two layers with a ReLU between them; `forward` is what the tests vary."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        return self.second(F.relu(self.first(x)))


class Unused(Net):
    def __init__(self) -> None:
        super().__init__()
        self.never, self.lonely = nn.Linear(5, 5), nn.Parameter(torch.ones(3, 3))


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle = nn.Linear(6, 16), nn.Linear(16, 16)
        self.again = nn.Linear(16, 16)
        self.again.weight = self.middle.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.again(F.relu(self.middle(F.relu(self.first(x))))))


class InPlace(Net):
    """Writes into its activations, as many residual networks do."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        hidden.relu_()
        hidden += 1.0
        return self.second(hidden)


class Overwriting(Net):
    """Writes into its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2.0))


class Reading(Net):
    """Uses a weight besides calling its layer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.first.weight.mean() * self.second.out_features


class Looping(Net):
    """Control flow on a shape, which is the same for every sample."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(x.shape[1] // 3):
            x = x + 1.0
        return super().forward(x) if x.shape[1] > 3 else x


class Keyword(Net):
    """Calls its layers by keyword."""

    def forward(self, x: Tensor) -> Tensor:
        return self.second(input=F.relu(self.first(input=x)))


class Random(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(1)


class Selecting(Net):
    """As many outputs as are positive."""

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        return found[found > 0]


def seeded(kind: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = kind()
    return model.eval()


def x(count: int = 16, seed: int = 3) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def stitch(found: Traced) -> Stitcher:
    return Stitcher(found, calibrate(found, [(x(64),)], 64), (x(64),))


def everything(found: Traced) -> Policy:
    """Every group halved, every layer factorised and on integers where it may be."""
    prune = [(group.name, Prune(group.width // 2)) for group in found.graph.groups]
    bits = [(layer.name, Quantize(8, 8)) for layer in found.graph.layers if layer.quantize]
    rank = [(layer.name, LowRank(3)) for layer in found.graph.layers if layer.low_rank]
    return Policy.of([*prune, *bits, *rank])


WORKING = [Net, Unused, Tied, InPlace, Overwriting, Reading, Looping, Keyword]


@pytest.mark.parametrize("kind", WORKING)
def test_unusual_models_are_compressed_and_exported(kind: Any) -> None:
    model, given = seeded(kind), x()
    kept, digest = given.clone(), model_digest(model)
    with torch.no_grad():
        expected = model(x())
    found = trace(model, (given,))
    assert relative_error(found.model(given), expected) < 1e-5
    compressed = stitch(found).apply(everything(found))
    assert bool(torch.isfinite(compressed(x())).all())
    file = build_onnx(compressed, (x(4),), reduce_range=True)
    build_pt2(found.model, (x(4),))
    assert len(file) > 0
    assert torch.equal(given, kept)
    assert model_digest(model) == digest


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        (Unused, "never", "it does not run in a forward pass"),
        (Tied, "middle", "it shares its weights with another layer"),
        (Reading, "first", "the model's code reads the layer itself"),
        (Keyword, "first", "given in order"),
    ],
)
def test_what_is_left_alone_has_a_reason(kind: Any, name: str, reason: str) -> None:
    reasons = [left.reason for left in trace(seeded(kind), (x(),)).graph.left_alone if left.name == name]
    assert any(reason in each for each in reasons)


def data(inputs: Tensor | None = None) -> Data:
    batch = (x() if inputs is None else inputs, torch.arange(16) % 4)
    return Data(None, [batch], [batch], None, "x")


def faults(model: nn.Module, given: Data | None = None) -> list[str]:
    return [str(fault) for fault in check_inputs(model, given or data())]


def poisoned(value: float, name: str = "second.weight") -> nn.Module:
    model = seeded(Net)
    model.get_parameter(name).data.view(-1)[1] = value
    return model


REFUSED = {
    "random": (lambda: seeded(Random), "different outputs when it runs twice on the same inputs"),
    "selecting": (lambda: seeded(Selecting), "for 4 samples"),
    "nan": (lambda: poisoned(float("nan")), "The model's second.weight holds NaN or infinite values."),
    "infinite": (lambda: poisoned(float("inf"), "first.bias"), "The model's first.bias holds NaN or infinite values."),
    "float64": (lambda: seeded(Net).double(), "The model's first.weight is float64. Return model.float()"),
    "half": (lambda: seeded(Net).half(), "The model's first.weight is float16. Return model.float()"),
    "complex": (lambda: seeded(Net).to(torch.complex64), "The model's first.weight is complex64."),
    "meta": (lambda: Net().to("meta"), "The model's first.weight is on meta. Return model.cpu()"),
    "lazy": (lambda: nn.LazyLinear(4), "The model's weight has no shape yet. Run the model once"),
    "scripted": (lambda: torch.jit.script(seeded(Net)), "scripted or traced module (TorchScript)"),
    "traced": (lambda: torch.jit.trace(seeded(Net), x()), "scripted or traced module (TorchScript)"),
    "exported": (lambda: torch.export.export(seeded(Net), (x(),)).module(), "an exported program (torch.export)"),
    "empty": (nn.ReLU, "The model has no parameters."),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_models_that_cannot_be_compressed_are_refused_in_one_sentence(name: str) -> None:
    build, message = REFUSED[name]
    found = faults(build())
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize("name", ["nan", "scripted", "random"])
@pytest.mark.filterwarnings("ignore")
def test_a_refused_model_leaves_nothing_behind(name: str, tmp_path: Path) -> None:
    build, message = REFUSED[name]
    with pytest.raises(InputError) as caught:
        automc.compress(build(), data=data(), budget="50%", runs=str(tmp_path), tracking_uri="")
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_infinite_masks_are_no_fault() -> None:
    model = seeded(Net)
    model.register_buffer("mask", torch.full((2, 2), -torch.inf))
    assert list(check_weights(model)) == []
    model.register_buffer("mask", torch.full((2, 2), torch.nan))
    assert [fault[:29] for fault in check_weights(model)] == ["The model's mask holds NaN or"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Data(None, [], [(x(), torch.zeros(16).long())], None, "x"), "The calibration split is empty."),
        (data(x().fill_(torch.nan)), "inputs hold NaN or infinite values"),
        (
            Data(None, [("text", 1)], [("text", 1)], None, "x"),
            "A batch of the data is a tuple of str, int, not tensors.",
        ),
        (Data(None, [{"text": ["a"]}], [{"text": ["a"]}], None, "x"), "A batch of the data is a dictionary of text"),
    ],
)
def test_data_that_cannot_be_used_is_named(given: Data, message: str) -> None:
    assert any(message in fault for fault in faults(seeded(Net), given))


def test_a_check_leaves_the_model_and_the_data_as_they_were() -> None:
    model, given = seeded(Overwriting), data()
    model.train()
    model.first.eval()  # one frozen layer
    before = given.calibration[0][0].clone()  # type: ignore[index]
    assert faults(model, given) == []
    assert torch.equal(given.calibration[0][0], before)  # type: ignore[index]
    assert [module.training for module in model.modules()] == [True, False, True]


@pytest.mark.parametrize("constant", [0.0, 1.0, -7.5])
def test_constant_activations_give_finite_results_everywhere(constant: float) -> None:
    model = make("plain")
    found = trace(model, (images(4),))
    same = torch.full((16, 3, 12, 12), constant)
    stats = calibrate(found, [(same,)], 16)
    assert all(bool(torch.isfinite(one.covariance).all() and torch.isfinite(one.mean).all()) for one in stats.values())
    stitcher = Stitcher(found, stats, (same,))
    assert all(np.isfinite(stitcher.prune_error(group, 1)) for group in found.graph.groups)
    for policy in (
        Policy.of((group.name, Prune(group.width // 2)) for group in found.graph.groups),
        Policy.of((layer.name, Quantize(8, 8)) for layer in found.graph.layers),
        Policy.of((layer.name, LowRank(2)) for layer in found.graph.layers),
    ):
        compressed = stitcher.apply(policy)
        assert bool(torch.isfinite(compressed(same)).all())
        assert all(bool(torch.isfinite(tensor).all()) for tensor in compressed.state_dict().values())
        build_onnx(compressed, (same[:4],), reduce_range=True)


class Dead(Net):
    """All of its hidden units are off."""

    def __init__(self) -> None:
        super().__init__()
        self.first.bias.data.fill_(-100.0)


def test_dead_units_can_be_pruned_away() -> None:
    found = trace(seeded(Dead), (x(),))
    compressed = stitch(found).apply(everything(found))
    with torch.no_grad():
        torch.testing.assert_close(compressed(x()), seeded(Dead)(x()), atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_parametrised_weights_become_plain_in_the_copy_alone(wrap: Any) -> None:
    model = seeded(Net)
    wrap(model.first)
    model(x())
    model.eval()
    names = [name for name, _ in model.named_parameters()]
    expected = model(x()).detach()
    found = trace(model, (x(),))
    torch.testing.assert_close(found.model(x()), expected, atol=1e-5, rtol=1e-5)
    assert isinstance(found.model.get_submodule("first").weight, nn.Parameter)
    assert [group.width for group in found.graph.groups] == [16]
    assert len(stitch(found).apply(everything(found)).get_submodule("first")) == 2
    assert [name for name, _ in model.named_parameters()] == names
    torch.testing.assert_close(model(x()), expected)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda model: nn.DataParallel(torch.compile(model))])
def test_wrappers_of_training_are_taken_off(wrap: Any) -> None:
    model = seeded(Net)
    assert unwrapped(wrap(model)) is model
    found = trace(wrap(model), (x(),))
    assert [layer.name for layer in found.graph.layers] == ["first", "second"]
    assert faults(wrap(model)) == []


def test_a_frozen_model_in_training_mode_is_taken_in_evaluation_mode() -> None:
    model = make("plain").train().requires_grad_(False)
    found = trace(model, (images(4),))
    torch.testing.assert_close(found.model(images(4)), make("plain")(images(4)), atol=1e-4, rtol=1e-4)
    assert found.graph.groups
    assert model.training


def test_a_model_made_in_inference_mode_is_traced() -> None:
    with torch.inference_mode():
        model = seeded(Net)
    assert trace(model, (x(),)).graph.groups


def test_a_model_that_cannot_be_copied_says_so() -> None:
    import threading

    model = seeded(Net)
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"cannot be copied: TypeError.*locks"):
        trace(model, (x(),))


def test_a_score_that_fails_is_named_and_one_of_nan_too() -> None:
    def broken(*_: object) -> float:
        raise KeyError("boxes")

    found = check_inputs(seeded(Net), data(), Score("mine", broken))
    assert "The score mine raised KeyError" in found[0]
    found = check_inputs(seeded(Net), data(), Score("mine", lambda *_: float("nan")))
    assert "mine returned nan" in found[0]
