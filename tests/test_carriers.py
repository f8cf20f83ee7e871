"""What stands between integer layers: which tensors are rounded, to which grids, and that the simulation needs it."""

from __future__ import annotations

import copy

import onnxruntime
import pytest
import torch
from networks import images
from torch import Tensor, nn
from torch.nn import functional as F

from automc.calibrate import calibrate
from automc.compression.apply import Stitcher
from automc.compression.carriers import carriers_of, detach, set_between
from automc.compression.flow import read_flow
from automc.compression.learned import fix_steps, learn_steps
from automc.compression.quantize import Quantized
from automc.export.onnx import build_onnx
from automc.export.verify import relative_error
from automc.policy import Policy, Quantize
from automc.tracing.trace import trace


class Branches(nn.Module):
    """A residual block whose sum two layers read, a pool, a concatenation, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.max_pool2d(F.relu(self.inner(x) + x), 2)
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def stitcher() -> Stitcher:
    found = trace(Branches().eval(), (images(4),))
    stats = calibrate(found, [(images(64),)], 64)
    return Stitcher(found, stats, (images(32),), reduce_range=True)  # exact on processors with and without VNNI


def rounded(*layers: str, bits: int = 8) -> nn.Module:
    stitch = stitcher()
    names = layers or tuple(layer.name for layer in stitch.traced.graph.layers)
    return stitch.finished(Policy.of((name, Quantize(bits, 8)) for name in names))


def error_of_file(model: nn.Module, simulation: nn.Module) -> float:
    session = onnxruntime.InferenceSession(build_onnx(model, (images(4),), reduce_range=True))
    return relative_error(torch.from_numpy(session.run(None, {"input": images(4).numpy()})[0]), simulation(images(4)))


def test_steps_are_the_calls_outside_of_layers_in_order() -> None:
    flow = read_flow(Branches(), (images(2),))
    assert [(step.key, step.kind) for step in flow.steps] == [
        ("stem", "layer"), ("relu:0", "activation"), ("inner", "layer"), ("add:0", "mix"), ("relu:1", "activation"),
        ("max_pool2d:0", "keep"), ("left", "layer"), ("right", "layer"), ("cat:0", "mix"), ("adaptive_avg_pool2d:0", "mix"),
        ("flatten:0", "keep"), ("head", "layer"),
    ]  # fmt: skip
    add = flow.steps[3]
    assert add.reads == (flow.steps[2].writes[0], flow.steps[1].writes[0])


def test_everything_between_integer_layers_is_rounded_but_what_is_fused_and_what_leaves_the_model() -> None:
    carriers = carriers_of(rounded())
    assert carriers is not None
    assert carriers.chain.read_by == {
        "relu:0": "inner", "relu:1": "left", "max_pool2d:0": "left", "adaptive_avg_pool2d:0": "head", "flatten:0": "head",
    }  # fmt: skip
    assert carriers.own == ["cat:0", "inner", "left", "right"]
    assert carriers.chain.shared == {"right": "left"}


def test_what_a_layer_in_floating_point_reads_or_writes_stays() -> None:
    carriers = carriers_of(rounded("stem", "left", "right"))
    assert carriers is not None
    assert not carriers.chain.read_by
    assert set(carriers.chain.like) == {"relu:0", "left", "right", "cat:0", "adaptive_avg_pool2d:0", "flatten:0"}


@pytest.mark.parametrize("bits", [8, 4])
def test_the_file_computes_what_is_simulated_and_not_what_layers_alone_would(bits: int) -> None:
    model = rounded(bits=bits)
    layers_alone = copy.deepcopy(model)
    detach(layers_alone)
    assert error_of_file(model, model) < 1e-4
    assert error_of_file(model, layers_alone) > 2e-3


def test_layers_that_read_the_same_tensor_have_one_grid_and_biases_are_whole_steps() -> None:
    model = rounded()
    left, right = (model.get_submodule(name) for name in ("left", "right"))
    assert isinstance(left, Quantized)
    assert isinstance(right, Quantized)
    assert float(left.scale) == float(right.scale)
    assert left.inner.bias is not None
    steps = left.inner.bias / (left.weight_scale.flatten() * left.scale)
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0.0)


def test_learned_steps_reach_what_is_rounded_between_layers() -> None:
    model = rounded()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    learn_steps(model)
    model(images(8)).square().sum().backward()
    inner = model.get_submodule("inner")
    assert isinstance(inner, Quantized)
    assert float(inner.scale.grad.abs()) > 0  # type: ignore[union-attr]
    with torch.no_grad():
        inner.scale.mul_(1.5)
    fix_steps(model)
    set_between(model.requires_grad_(False), (images(32),))
    carriers = carriers_of(model)
    assert carriers is not None
    assert carriers.fixed_grids(model)["relu:0"][0] == float(inner.scale)
    assert error_of_file(model, model) < 1e-4


def test_a_model_that_fails_rounds_as_before_afterwards() -> None:
    model = rounded()
    expected = model(images(2))
    with pytest.raises(RuntimeError):
        model(images(2)[:, :2])
    torch.testing.assert_close(model(images(2)), expected)
    torch.testing.assert_close(F.relu(images(2)), images(2).clamp_min(0.0))
