"""Every layer costs something: what a model computes is counted once, and the same by the graph and by the model as it runs."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from automc.devices.eyeriss import Eyeriss
from automc.export.onnx import build_onnx
from automc.macs import count_macs
from automc.policy import Prune
from automc.predict.attribute import places_in
from automc.predict.simulated import SimulatedPredictor
from automc.predict.structure import read_structure
from automc.space import Domain, SearchSpace
from automc.tracing.trace import trace


class Derived(nn.Conv2d):
    """A layer of somebody's own class."""


class Shared(nn.Module):
    """One layer at two places, called twice and once, and two layers of the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.again = self.first
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied.weight = self.second.weight
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.tied(self.second(torch.relu(self.again(torch.relu(self.first(self.first(x))))))))


class Named(nn.Module):
    """Layers that are given what they read by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.fc = nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Any:
        return self.fc(input=self.up(input=x))


class Gated(nn.Module):
    """Recurrent layers of two levels and two directions."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.GRU(5, 6, num_layers=2, bidirectional=True, batch_first=True), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.rnn(x)[0][:, -1])


class Windows(nn.Module):
    """Windows and frames that are merged into the batch for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix, self.rnn, self.head = (
            nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 6), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Any:
        batch, frames = x.shape[:2]
        maps = self.conv(x.flatten(0, 1)).flatten(2).transpose(1, 2)
        tokens = self.mix(maps.reshape(-1, 16, 4))
        return self.head(self.rnn(tokens)[0][:, -1].reshape(batch, frames, -1, 5).mean((1, 2)))


class Placed(nn.Module):
    """Embeddings of positions that a layer computes from what never changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.randn(7, 4))
        self.place, self.mix, self.head = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.relu(self.mix(x + self.place(self.places))).mean(1))


class Reversed(nn.Module):
    """Two layers of the same weights and other strides, the later one first."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.far.weight = self.near.weight
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.near(torch.relu(self.far(x))).mean((2, 3)))


def signal() -> nn.Module:
    """Convolutions of one dimension, with what thop counts besides."""
    return nn.Sequential(
        nn.Conv1d(4, 16, 5, padding=2), nn.PReLU(), nn.Conv1d(16, 16, 3, padding=1, groups=16), nn.AvgPool1d(2),
        nn.Conv1d(16, 12, 3, stride=2, padding=1), nn.LayerNorm(8), nn.Flatten(), nn.Linear(96, 3), nn.Softmax(1),
    )  # fmt: skip


def volume() -> nn.Module:
    return nn.Sequential(nn.Conv3d(2, 6, (3, 1, 2)), nn.ReLU(), nn.ConvTranspose3d(6, 4, 2, stride=2), nn.Flatten(), nn.Linear(1024, 2))  # fmt: skip


def upwards() -> nn.Module:
    return nn.Sequential(
        Derived(3, 8, 3, padding=1), nn.Upsample(scale_factor=2), nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1, groups=2),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip


MODELS = {
    "one dimension": (signal, (4, 32), 32 * 16 * 4 * 5 + 32 * 16 * 3 + 8 * 12 * 16 * 3 + 96 * 3),
    "three dimensions": (volume, (2, 6, 4, 3), 4 * 4 * 2 * 6 * 2 * 6 + 4 * 4 * 2 * 6 * 4 * 8 + 1024 * 2),
    "transposed, derived": (upwards, (3, 8, 8), 64 * 8 * 3 * 9 + 256 * 4 * 4 * 16 + 16 * 2),
    "shared": (Shared, (8,), 5 * 64 + 24),
    "by keyword": (Named, (3, 8, 8), 64 * 3 * 4 * 9 + 4 * 16 * 16 * 2),
    "windows": (Windows, (3, 3, 8, 8), 3 * 64 * 4 * 27 + 3 * 64 * 24 + 3 * 64 * 20 * 11 + 10),
    "constant": (Placed, (7, 5), 7 * 20 + 7 * 30 + 12),
    "reversed": (Reversed, (4, 8, 8), 2 * 16 * 16 * 9 + 8),
    "recurrent": (Gated, (7, 5), 7 * 2 * 18 * (5 + 6) + 7 * 2 * 18 * (12 + 6) + 24),
}


@pytest.mark.parametrize("name", MODELS)
def test_all_layers_are_counted_once_and_alike(name: str) -> None:
    build, shape, macs = MODELS[name]
    model, example = build().eval(), torch.randn(2, *shape)
    traced = trace(model, [example])

    assert traced.graph.macs == macs
    assert count_macs(copy.deepcopy(traced.model), [example[:1]]) == macs
    assert count_macs(copy.deepcopy(model), [example[:1]]) == macs


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_is_a_step_of_the_exported_model(name: str) -> None:
    build, shape, _ = MODELS[name]
    traced = trace(build().eval(), [torch.randn(2, *shape)])
    structure = read_structure(build_onnx(traced.model, traced.example, reduce_range=False), traced.graph)

    assert structure.absent == ({"place"} if name == "constant" else set())
    ran = [traced.graph.priced[step.layer] for step in structure.steps if step.layer >= 0]
    assert sorted(layer.name for layer in ran) == sorted(
        layer.name for layer in traced.graph.priced if layer.name not in structure.absent
    )
    if name == "reversed":
        assert [layer.name for layer in ran] == ["far", "near", "head"]


def test_what_a_model_notes_of_its_inputs_stays_as_it_was() -> None:
    class Noting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Any:
            self.seen.copy_(x.mean())
            return self.fc(x)

    traced = trace(Noting().eval(), [torch.randn(2, 4)])
    assert [layer.name for layer in traced.graph.layers] == ["fc"]
    assert torch.isfinite(traced.model.get_buffer("seen"))


def test_kernels_of_shared_weights_are_told_apart() -> None:
    traced = trace(Reversed().eval(), [torch.randn(2, 4, 8, 8)])
    places = places_in(build_onnx(traced.model, traced.example, reduce_range=False), ["near", "far", "head"])
    assert {place for name, place in places.items() if name.endswith("/Conv")} == {("far", 0), ("near", 0)}


def test_a_layer_that_reads_the_same_whatever_it_is_given_is_left_alone() -> None:
    graph = trace(Placed().eval(), [torch.randn(2, 7, 5)]).graph
    assert [layer.name for layer in graph.layers] == ["mix", "head"]
    assert "the same for all inputs" in {left.name: left.reason for left in graph.left_alone}["place"]
    assert [layer.name for layer in trace(Placed().eval(), [torch.zeros(2, 7, 5)]).graph.layers] == ["mix", "head"]


def test_a_layer_that_runs_again_is_a_layer_per_call_stored_once() -> None:
    graph = trace(Shared().eval(), [torch.randn(2, 8)]).graph
    assert [layer.name for layer in graph.others] == ["first", "first (call 2)", "first (call 3)", "second", "tied"]
    assert [layer.stored for layer in graph.others] == [True, False, False, True, False]
    assert {layer.module for layer in graph.others} == {"first", "second", "tied"}


def test_pruning_convolutions_of_one_dimension_costs_less_on_a_simulated_device() -> None:
    traced = trace(signal().eval(), [torch.randn(2, 4, 32)])
    group = next(group for group in traced.graph.groups if group.width == 16)
    space = SearchSpace([Domain(group.name, "prune", (None, Prune(8)))])
    dense = build_onnx(traced.model, traced.example, reduce_range=False)
    predictor = SimulatedPredictor.of(Eyeriss(), traced.graph, space, dense, 2)
    costs = predictor.predict(np.array([[0], [1]]))

    halved = 32 * 8 * 4 * 5 + 32 * 8 * 3 + 8 * 12 * 8 * 3 + 96 * 3
    assert costs.macs.tolist() == [traced.graph.macs, halved]
    assert costs.latency_s[1] < 0.7 * costs.latency_s[0]
    assert predictor.layers == tuple(layer.name for layer in traced.graph.priced)
    assert 0.9 * len(dense) < costs.size_bytes[0] < 1.1 * len(dense)
