"""Every convolutional family, from tracing to a compressed ONNX file (the networks and what is expected: `zoo.ZOO`)."""

from __future__ import annotations

import copy
from functools import cache
from itertools import chain

import numpy as np
import onnxruntime
import pytest
import torch
from networks import images
from torch import nn
from zoo import ZOO, make_family, trained

from automc.calibrate import calibrate
from automc.compression.apply import Stitcher
from automc.compression.carriers import detach
from automc.compression.prune import dropped, reading_order, remove_channels, zero_consumers
from automc.compression.quantize import float_model
from automc.devices.eyeriss import Eyeriss
from automc.export.onnx import build_onnx
from automc.export.verify import FLOAT_TOLERANCE, relative_error
from automc.macs import count_macs
from automc.policy import LowRank, Policy, Prune, Quantize
from automc.predict.simulated import SimulatedPredictor
from automc.search_spaces.default import default
from automc.tracing.trace import Traced, trace

families = pytest.mark.parametrize("name", ZOO)
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


@cache
def traced(name: str) -> Traced:
    return trace(make_family(name), (ZOO[name].inputs(4),))


@cache
def stitcher(name: str) -> Stitcher:
    inputs = ZOO[name].inputs(32)
    stats = calibrate(traced(name), [(inputs,)], 32)
    return Stitcher(traced(name), stats, (inputs,), reduce_range=True)  # exact on processors with and without VNNI


def random_policy(name: str) -> Policy:
    """A random choice for every knob of every target that the default space has, the dense ones made the mildest."""
    space = default(traced(name).graph, channel_block=4, int8=True)
    return space.decode(np.maximum(space.sample(1, np.random.default_rng(0)), 1))[0]


def deployed(name: str, policy: Policy) -> tuple[torch.Tensor, torch.Tensor]:
    """(outputs of the compressed PyTorch model, outputs of its ONNX file in ONNX Runtime)."""
    model, inputs = stitcher(name).finished(policy), ZOO[name].inputs(4)
    file = build_onnx(model, (inputs,), reduce_range=True)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return model(inputs), torch.from_numpy(session.run(None, {"input": inputs.numpy()})[0])


@families
def test_folding_changes_nothing(name: str) -> None:
    inputs = ZOO[name].inputs(4)
    torch.testing.assert_close(traced(name).model(inputs), make_family(name)(inputs), atol=1e-4, rtol=1e-4)


@families
def test_the_groups_are_what_an_expert_expects(name: str) -> None:
    assert dict(traced(name).graph.widths) == ZOO[name].groups


@families
def test_what_stays_has_the_reason_that_is_expected(name: str) -> None:
    left, family = {entry.name: entry.reason for entry in traced(name).graph.left_alone}, ZOO[name]
    assert left.keys() == family.stays.keys() | family.plain.keys()
    for layer, part in chain(family.stays.items(), family.plain.items()):
        assert part in left[layer]


@families
def test_every_layer_is_offered_or_listed_and_all_layers_but_the_last_are_pruned_or_listed(name: str) -> None:
    model, graph = traced(name).model, traced(name).graph
    listed = {entry.name for entry in graph.left_alone}
    layers = [layer for layer, module in model.named_modules() if isinstance(module, _LAYERS)]
    assert set(layers) <= graph.layer.keys() | listed
    offered = {producer for group in graph.groups for producer in group.producers}
    streams = {  # layers that write channels whose reason is listed with the first layer that does
        "shufflenet v2": {"1.branch.1.0", "1.branch.2.0", "2.branch.1.0"},
        "shuffled groups": {"grouped.0"},
        "convnext": {"1.depthwise", "1.down", "2.depthwise", "2.down"},
        "group norm": {"expand"},
    }
    assert set(layers) - offered - streams.get(name, set()) - ZOO[name].stays.keys() == {layers[-1]}


@families
@pytest.mark.parametrize("seed", [0, 1])
def test_removing_channels_equals_zeroing_what_reads_them(name: str, seed: int) -> None:
    graph, rng = traced(name).graph, np.random.default_rng(seed)
    keep = {g.name: sorted(rng.permutation(g.width)[: rng.integers(1, g.width)].tolist()) for g in graph.groups}
    removed, zeroed = copy.deepcopy(traced(name).model), copy.deepcopy(traced(name).model)
    remove_channels(removed, graph.groups, keep)
    zero_consumers(zeroed, graph.groups, keep)
    inputs = ZOO[name].inputs(3)
    expected = zeroed(inputs)
    assert relative_error(removed(inputs), expected) < 1e-4
    assert relative_error(traced(name).model(inputs), expected) > 1e-3  # the channels were not idle


@families
def test_layers_have_the_channels_that_the_graph_foretells(name: str) -> None:
    graph = traced(name).graph
    keep = {group.name: max(1, group.width // 3) for group in graph.groups}
    model = copy.deepcopy(traced(name).model)
    remove_channels(model, graph.groups, {group: range(count) for group, count in keep.items()})
    for layer in graph.layers:
        module = model.get_submodule(layer.name)
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        inputs, outputs = layer.inputs.count(keep), layer.outputs.count(keep)
        conv = isinstance(module, nn.Conv2d)
        assert (inputs, outputs) == (
            (module.in_channels, module.out_channels) if conv else (module.in_features, module.out_features)
        )
        assert module.weight.shape[:2] == (outputs, inputs // (module.groups if conv else 1))


@families
def test_a_random_policy_of_pruning_and_low_rank_becomes_an_onnx_file_that_computes_the_same(name: str) -> None:
    policy = Policy.of((target, spec) for target, spec in random_policy(name) if not isinstance(spec, Quantize))
    assert Prune in {type(spec) for _, spec in policy}
    expected, found = deployed(name, policy)
    assert expected.shape == traced(name).model(ZOO[name].inputs(4)).shape
    assert relative_error(found, expected) <= FLOAT_TOLERANCE


@families
def test_a_random_policy_of_all_knobs_becomes_an_onnx_file_that_computes_the_same(name: str) -> None:
    policy = random_policy(name)
    assert not traced(name).graph.layers or Quantize in {type(spec) for _, spec in policy}
    expected, found = deployed(name, policy)
    assert relative_error(found, expected) <= FLOAT_TOLERANCE


def test_the_zoo_meets_every_knob() -> None:
    specs = {type(spec) for name in ZOO for _, spec in random_policy(name)}
    assert specs == {Prune, LowRank, Quantize}


def test_groups_of_a_convolution_go_as_a_whole() -> None:
    graph = traced("resnext").graph
    group = graph.group["1.reduce.0"]
    assert group.unit == "groups"
    model = copy.deepcopy(traced("resnext").model)
    dense = model.get_submodule("1.middle.0").weight.clone()
    remove_channels(model, graph.groups, {"1.reduce.0": [1, 3]})
    middle = model.get_submodule("1.middle.0")
    assert (middle.groups, middle.in_channels, middle.out_channels) == (2, 8, 8)
    assert torch.equal(middle.weight, torch.cat([dense[4:8], dense[12:16]]))
    assert graph.layer["1.middle.0"].inputs.parts == (("1.reduce.0", 4),)
    assert [i for m, side, i in dropped(graph.groups, {"1.reduce.0": [0, 1, 2]}) if side == "in"] == [[12, 13, 14, 15]]


def test_a_group_norm_loses_whole_groups() -> None:
    graph = traced("group norm").graph
    assert (graph.group["reduce"].unit, graph.group["middle"].unit) == ("groups", "channels")
    model = copy.deepcopy(traced("group norm").model)
    remove_channels(model, graph.groups, {"reduce": [0, 2, 3]})
    norm = model.get_submodule("fours")
    assert (norm.num_groups, norm.num_channels, len(norm.weight)) == (3, 12, 12)


class Aliased(nn.Module):
    """One layer and its norm under two names, as in models that list their layers again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 8, 3), trained(nn.BatchNorm2d(8)), nn.Conv2d(8, 4, 1)
        self.layers = nn.Sequential(self.conv, self.norm, nn.ReLU(inplace=True), self.last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_a_norm_that_goes_by_two_names_is_not_folded_into_one_of_them() -> None:
    torch.manual_seed(0)
    model = Aliased().eval()
    found = trace(model, (images(4),))
    torch.testing.assert_close(found.model(images(4)), model(images(4)))
    assert "shares its weights" in {entry.name: entry.reason for entry in found.graph.left_alone}["conv"]


def test_a_grouped_convolution_that_reads_the_input_keeps_its_groups() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 3, groups=3), nn.ReLU(), nn.Conv2d(12, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    graph = trace(model, (images(4),)).graph
    assert dict(graph.widths) == {"2": 8}
    assert "one group of the model's inputs" in {entry.name: entry.reason for entry in graph.left_alone}["0"]


def test_depthwise_multipliers_go_with_the_channel_that_they_read() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 12, 3, groups=6), nn.ReLU(), nn.Conv2d(12, 2, 1))
    graph = trace(model, (images(4),)).graph
    assert dict(graph.widths) == {"0": 6}
    assert graph.layer["4"].inputs.parts == (("0", 2),)


def test_channels_without_recorded_readers_are_ordered_by_the_weights_that_read_them() -> None:
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 1))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([3.0, 1.0, 2.0, 4.0]).expand(2, 4)[:, :, None])
    found = trace(model, (torch.randn(2, 1, 16),))
    order, errors = reading_order(found.model, found.graph.group["0"])
    assert order == [1, 2, 0, 3]
    assert errors == pytest.approx([1 / 30, 5 / 30, 14 / 30, 1.0])


def test_tracing_tries_groups_together_and_halves_them_where_they_fail() -> None:
    """One bad group among 64 costs some ten pairs of forward passes, not 64."""
    runs = []

    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(65)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            runs.append(1)
            for index, layer in enumerate(self.layers):
                x = layer(x).relu()
                if index == 20 and x.shape[1] < 8:
                    raise RuntimeError("eight channels, please")
            return x

    graph = trace(Long(), (torch.randn(2, 8),)).graph
    assert len(graph.groups) == 63
    assert "eight channels, please" in {entry.name: entry.reason for entry in graph.left_alone}["layers.20"]
    assert len(runs) < 40


@families
def test_multiply_accumulates_are_what_they_are_predicted_to_be(name: str) -> None:
    graph, policy = traced(name).graph, random_policy(name)
    space = default(graph, channel_block=4, int8=True)
    predictor = SimulatedPredictor.of(Eyeriss(), graph, space, b"", 4)
    model = float_model(stitcher(name).finished(policy))
    detach(model)
    sample = [ZOO[name].inputs(4)[:1]]
    assert count_macs(copy.deepcopy(traced(name).model), sample) == graph.macs
    assert predictor.predict(space.encode([policy])).macs.tolist() == [count_macs(model, sample)]
