"""Pruning criteria: each finds the channel that it is meant to find, on every way in which channels hang together."""

from __future__ import annotations

import pytest
import torch
from networks import NETWORKS, conv, images, make
from torch import Tensor, nn

from automc.calibrate import calibrate
from automc.compression.apply import Stitcher
from automc.compression.criteria import CRITERIA, SWEPT, Pruning, channel_order, channel_scores, fallbacks
from automc.compression.evidence import Evidence, producers, tp_group
from automc.errors import InputError, UnknownNameError
from automc.graph import ChannelGroup, Member
from automc.policy import Policy, Prune
from automc.tracing.trace import Traced, trace

LITERATURE = [criterion for criterion in CRITERIA if criterion not in SWEPT]
SILENT = {("plain", "bn"): ("1",), ("mobile", "bn"): ("squeeze",), ("dense", "apoz"): ("third.0",)}
"""Groups without a batch norm, and one that is only read after it was averaged, so that nothing is zero."""


def traced(name: str) -> Traced:
    return trace(make(name), (images(4),))


def evidence(found: Traced) -> Evidence:
    return Evidence(found, (images(16),))


class Planted(nn.Module):
    """A layer of 8 channels whose batch norm, filters and biases can be set, read by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = conv(3, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).mean((2, 3)))

    @property
    def layer(self) -> nn.Conv2d:
        return self.first[0]  # type: ignore[return-value]

    @property
    def norm(self) -> nn.BatchNorm2d:
        return self.first[1]  # type: ignore[return-value]


def plant(criterion: str, model: Planted, channel: int) -> None:
    """Make `channel` the one that `criterion` removes first, and no other criterion needs to."""
    with torch.no_grad():
        if criterion in ("l1", "l2", "lamp"):
            model.layer.weight[channel] *= 0.01
        elif criterion == "bn":
            model.norm.weight[channel] = 0.001
        elif criterion == "taylor":
            model.head.weight[:, channel] *= 1e-3  # a channel that the output hardly depends on
        elif criterion == "fpgm":
            model.layer.weight[channel] = model.layer.weight.abs().median(0).values
        elif criterion == "apoz":
            model.norm.bias[channel] = -1000.0


@pytest.mark.parametrize("criterion", [c for c in LITERATURE if c != "random"])
@pytest.mark.parametrize("channel", [2, 5])
def test_the_planted_channel_goes_first(criterion: str, channel: int) -> None:
    model = Planted()
    plant(criterion, model, channel)
    found = trace(model.eval(), (images(4),))
    order, gone = channel_order(Pruning(criterion), found.graph.groups[0], evidence(found))
    assert order[0] == channel
    assert sorted(order) == list(range(8))
    assert gone == sorted(gone)
    assert gone[-1] == pytest.approx(1.0)


def test_l1_is_the_norm_of_the_filters_before_the_batch_norm_was_folded() -> None:
    model = Planted().eval()
    expected = model.layer.weight.detach().abs().sum((1, 2, 3))
    found = trace(model, (images(4),))
    group = found.graph.groups[0]
    torch.testing.assert_close(channel_scores(Pruning("l1"), group, evidence(found)), expected)
    assert channel_order(Pruning("l1"), group, evidence(found))[0] == expected.argsort().tolist()
    folded = found.model.get_submodule("first.0").weight.abs().sum((1, 2, 3))  # type: ignore[operator, union-attr]
    assert folded.argsort().tolist() != expected.argsort().tolist()


def test_layers_that_share_their_channels_add_up() -> None:
    found = traced("residual")
    stream = next(group for group in found.graph.groups if "stem.0" in group.producers)
    assert {"stem.0", "a2.0"} <= set(stream.producers)
    filters = evidence(found).filters
    norms = [filters.get_submodule(name).weight.square().sum((1, 2, 3)) for name in ("stem.0", "a2.0")]  # type: ignore[operator, union-attr]
    scores = channel_scores(Pruning("l2"), stream, evidence(found))
    torch.testing.assert_close(scores, norms[0] + norms[1])


def test_a_depthwise_filter_counts_for_its_channel() -> None:
    found = traced("mobile")
    hidden = next(group for group in found.graph.groups if "depthwise.0" in group.producers)
    assert {member.module for _, member in producers(hidden, found.model)} >= {"expand.0", "depthwise.0", "excite"}
    filters = evidence(found).filters
    weights = [filters.get_submodule(name).weight for name in ("expand.0", "depthwise.0", "excite")]
    expected = sum(weight.abs().flatten(1).sum(1) for weight in weights)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(channel_scores(Pruning("l1"), hidden, evidence(found)), expected)


def test_activations_are_read_where_a_concatenation_put_them() -> None:
    found = traced("dense")
    second = found.graph.group["second.0"]
    index = next(member.index for member in second.members if member.module == "third.0" and member.side == "in")
    assert index == tuple((8 + channel,) for channel in range(8))
    with torch.no_grad():
        one = found.model.first(images(16))  # type: ignore[operator]
        two = found.model.second(one)  # type: ignore[operator]
        three = found.model.third(torch.cat([one, two], 1))  # type: ignore[operator]
    pooled = torch.cat([one, two, three], 1).mean((2, 3))[:, 8:16]
    expected = ((two != 0).float().mean((0, 2, 3)) + (pooled != 0).float().mean(0)) / 2
    torch.testing.assert_close(channel_scores(Pruning("apoz"), second, evidence(found)), expected)


def test_a_flattened_channel_is_all_its_positions() -> None:
    found = traced("plain")
    last = next(group for group in found.graph.groups if group.consumers == ("1",))
    with torch.no_grad():
        features = found.model[0](images(16)).view(16, 24, 4)  # type: ignore[operator, index]
    expected = (features != 0).float().mean((0, 2))
    torch.testing.assert_close(channel_scores(Pruning("apoz"), last, evidence(found)), expected)


def test_a_unit_of_several_channels_has_the_sum_of_their_scores() -> None:
    layer = nn.Linear(4, 6)
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(6, 2)).eval()
    found = trace(model, (torch.randn(4, 4),))
    heads = ((0, 3), (1, 4), (2, 5))  # as the queries and keys of three heads lie in one layer
    group = ChannelGroup("0", 3, (Member("0", "out", heads), Member("2", "in", heads)), "heads")
    rows = layer.weight.detach().abs().sum(1)
    scores = channel_scores(Pruning("l1"), group, Evidence(found, (torch.randn(8, 4),)))
    torch.testing.assert_close(scores, torch.stack([rows[list(head)].sum() for head in heads]))


def test_the_group_handed_to_torch_pruning_pairs_channels_with_units() -> None:
    layer = nn.Conv2d(2, 4, 1)
    item = tp_group([(layer, Member("x", "out", ((3,), (0, 2))))])[0]
    assert item.idxs == [0, 2, 3]
    assert item.root_idxs == [1, 1, 0]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("criterion", LITERATURE)
def test_every_criterion_ranks_every_group_or_says_that_it_cannot(name: str, criterion: str) -> None:
    found = traced(name)
    seen, pruning = Evidence(found, (images(4),)), Pruning(criterion)
    if name == "attention" and criterion in ("bn", "apoz"):
        with pytest.raises(InputError, match=f"{criterion!r} cannot rank anything: the model has no"):
            fallbacks(pruning, seen)
        return
    assert fallbacks(pruning, seen) == SILENT.get((name, criterion), ())
    for group in found.graph.groups:
        order, gone = channel_order(pruning, group, seen)
        assert sorted(order) == list(range(group.width))
        assert gone == sorted(gone)


def test_a_group_without_batch_norm_falls_back() -> None:
    found = traced("plain")
    seen = evidence(found)
    assert fallbacks(Pruning("bn"), seen) == ("1",)
    group = found.graph.group["1"]
    assert torch.equal(
        channel_scores(Pruning("bn"), group, seen), channel_scores(Pruning("l1"), group, seen)
    )  # fmt: skip


@pytest.mark.parametrize("criterion", ["random", "taylor"])
def test_the_same_seed_gives_the_same_order_and_leaves_the_global_one_alone(criterion: str) -> None:
    found = traced("residual")
    group = found.graph.groups[0]

    def scores(seed: int) -> Tensor:
        return channel_scores(Pruning(criterion, seed=seed), group, Evidence(found, (images(16),), seed=seed))

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    assert torch.equal(scores(3), scores(3))
    assert not torch.equal(scores(3), scores(4))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_groups_are_drawn_apart_from_each_other() -> None:
    found = traced("dense")
    orders = {tuple(channel_order(Pruning("random"), group, evidence(found))[0]) for group in found.graph.groups}
    assert len(orders) == len(found.graph.groups)


def test_taylor_is_the_squared_derivative_of_a_gate_on_each_channel() -> None:
    found = trace(Planted().eval(), (images(4),))
    seen = Evidence(found, (images(8),))
    scores = channel_scores(Pruning("taylor"), found.graph.groups[0], seen)
    gate = torch.ones(8, requires_grad=True)
    found.model.get_submodule("first.0").register_forward_hook(lambda *call: call[2] * gate.view(1, 8, 1, 1))
    generator, expected = torch.Generator().manual_seed(0), torch.zeros(8)
    for row in images(8):
        loss = seen._loss(found.model(row[None]), generator)
        expected += torch.autograd.grad(loss, gate)[0].square() / 8
    torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize("logits", [True, False])
def test_taylor_works_where_scores_are_taken_without_gradients(logits: bool) -> None:
    found = traced("residual")
    seen = Evidence(found, (images(8),), logits=logits)
    with torch.inference_mode():
        scores = channel_scores(Pruning("taylor"), found.graph.groups[0], seen)
    assert bool((scores > 0).all())


def test_without_compensation_weights_stay_and_norms_are_recalibrated() -> None:
    found, inputs = traced("residual"), (images(64),)
    stats = calibrate(found, [inputs], 64)
    policy = Policy.of([("a1.0", Prune(6))])
    model = Stitcher(found, stats, inputs, pruning=Pruning("l1", compensate=False)).apply(policy)
    kept = sorted(channel_order(Pruning("l1"), found.graph.group["a1.0"], Evidence(found, inputs))[0][6:])
    dense, pruned = found.model.get_submodule("a2.0"), model.get_submodule("a2.0")
    assert isinstance(dense, nn.Conv2d)
    assert isinstance(pruned, nn.Conv2d)
    ratio = pruned.weight / dense.weight[:, kept]  # rescaled as a whole, output by output
    torch.testing.assert_close(ratio, ratio[:, :1, :1, :1].expand_as(ratio), rtol=1e-3, atol=1e-3)
    seen: list[Tensor] = []
    pruned.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        model(*inputs)
    norm = found.norms["a2.0"]
    torch.testing.assert_close(seen[0].mean((0, 2, 3)), norm.bias, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(seen[0].std((0, 2, 3)), norm.weight.abs(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("criterion", ["obs", "l2"])
def test_compensation_comes_nearer_to_the_dense_model(criterion: str) -> None:
    found, inputs = traced("residual"), (images(64),)
    stats = calibrate(found, [inputs], 64)
    policy = Policy.of([("a1.0", Prune(6)), ("b1.0", Prune(6))])
    errors = []
    for compensate in (True, False):
        model = Stitcher(found, stats, inputs, pruning=Pruning(criterion, compensate)).apply(policy)
        with torch.no_grad():
            errors.append(float((model(*inputs) - found.model(*inputs)).square().mean()))
    assert errors[0] < errors[1]


def test_fisher_weighs_errors_by_what_they_cost() -> None:
    """Two channels are read by one output each: the one that the loss hardly depends on goes first, though its error is larger."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 2, bias=False), nn.Linear(2, 4, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2, 6))
        model[1].weight.copy_(torch.diag(torch.tensor([2.0, 1.0])))
        model[2].weight[:, 0] *= 0.01
    inputs = torch.randn(64, 6)
    found = trace(model, (inputs[:2],))
    stats = calibrate(found, [(inputs,)], 64)
    orders = [
        Stitcher(found, stats, (inputs,), pruning=Pruning(criterion)).order(found.graph.group["0"])
        for criterion in SWEPT
    ]
    assert orders == [[1, 0], [0, 1]]


def test_an_unknown_criterion_is_named_with_its_closest_match() -> None:
    with pytest.raises(UnknownNameError, match=r"'fpmg'. Did you mean 'fpgm'\? Known pruning criteria: apoz, bn"):
        Pruning("fpmg")
