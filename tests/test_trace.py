"""Tracing: which channels hang together, what is left alone, and that folding changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import NETWORKS, images, make
from torch import Tensor, nn

from automc.errors import InputError
from automc.tracing.trace import Traced, trace


def traced(name: str) -> Traced:
    return trace(make(name), (images(4),))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_folded_model_computes_the_same(name: str) -> None:
    model = make(name)
    found = trace(model, (images(4),))
    torch.testing.assert_close(found.model(images(4)), model(images(4)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_given_model_is_not_changed(name: str) -> None:
    model = make(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trace(model, (images(4),))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def widths(name: str) -> dict[str, int]:
    return dict(traced(name).graph.widths)


def test_a_chain_has_one_group_per_layer_and_follows_the_flattening() -> None:
    graph = traced("plain").graph
    assert [group.width for group in graph.groups] == [16, 24, 20]
    assert graph.layer["1"].inputs.parts == ((graph.groups[1].name, 4),)


def test_a_residual_stream_is_one_group_and_inner_channels_another() -> None:
    assert widths("residual") == {"stem.0": 8, "a1.0": 12, "b1.0": 12, "b2.0": 16}


def test_a_padded_shortcut_shifts_the_channels_of_the_narrow_stream() -> None:
    graph = traced("padded").graph
    stream = graph.group["stem.0"]
    wide = next(m for m in stream.members if m.module == "b2.0")
    assert [index[0] for index in wide.index] == list(range(4, 12))
    assert graph.layer["b2.0"].outputs.count({"stem.0": 3, **dict.fromkeys(graph.widths, 3)}) == 8 + 3


def test_channels_born_behind_a_fixed_pad_are_left_alone_with_a_reason() -> None:
    left = {entry.name: entry.reason for entry in traced("padded").graph.left_alone}
    assert "pad" in left["b2.0"]


def test_concatenated_channels_are_pruned_one_source_at_a_time() -> None:
    assert widths("dense") == {"first.0": 8, "second.0": 8, "third.0": 8}


def test_depthwise_and_excitation_follow_the_expansion() -> None:
    graph = traced("mobile").graph
    expansion = graph.group["expand.0"]
    assert {"depthwise.0", "excite"} <= set(expansion.producers)
    assert {"squeeze", "project.0"} <= set(expansion.consumers)
    assert graph.layer["depthwise.0"].inputs == graph.layer["depthwise.0"].outputs


def test_a_shuffle_that_cannot_be_followed_is_left_alone() -> None:
    graph = traced("shuffle").graph
    assert "stem.0" not in graph.widths
    assert graph.left_alone


def test_the_hidden_width_of_a_transformer_is_offered() -> None:
    assert widths("attention").get("up") == 32


def test_a_layer_used_twice_and_one_never_used_are_left_alone() -> None:
    reasons = {entry.name: entry.reason for entry in traced("shared").graph.left_alone}
    assert "2 times" in reasons["twice"]
    assert "does not run" in reasons["unused"]


def test_macs_agree_with_a_count_by_hand() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Flatten(), nn.Linear(8 * 36, 5)), (images(2),)).graph
    assert graph.macs == 36 * 8 * 3 * 9 + 8 * 36 * 5


class Dictionary(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": x}


def test_the_structure_of_what_a_model_returns_is_known() -> None:
    found = trace(Dictionary(), (images(2),))
    assert tuple(found.outputs.rebuild([torch.ones(1)])) == tuple(found.model(images(2)))


def test_a_model_that_does_not_fit_the_data_is_refused() -> None:
    with pytest.raises(InputError, match="does not run on an input of shape"):
        trace(make("plain"), (torch.zeros(2, 7, 12, 12),))


class Branching(nn.Module):
    """Control flow on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.one(x)
        return self.two(hidden if hidden.sum() > 0 else -hidden)


def test_control_flow_does_not_crash() -> None:
    assert [layer.name for layer in trace(Branching(), (torch.ones(2, 4),)).graph.layers] == ["one", "two"]


class Counting(nn.Module):
    """Two hidden layers side by side; `look` is told their widths at every pass."""

    def __init__(self, look: Callable[[int, int], object]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(4, 6)
        self.out_a, self.out_b = nn.Linear(8, 2), nn.Linear(6, 2)
        self.look = look

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x).relu(), self.b(x).relu()
        self.look(a.shape[1], b.shape[1])
        out: Tensor = self.out_a(a) + self.out_b(b)
        return out


def _key(a: int, b: int) -> object:
    return {8: "the only width that was thought of"}[a]


def _attribute(a: int, b: int) -> object:
    return None if a == 8 else a.channels  # type: ignore[attr-defined]


def _type(a: int, b: int) -> object:
    return None if a == 8 else len(a)  # type: ignore[arg-type]


def _own(a: int, b: int) -> None:
    class OddError(Exception):
        pass

    if a != 8:
        raise OddError


@pytest.mark.parametrize("look", [_key, _attribute, _type, _own])
def test_a_model_that_fails_with_fewer_channels_keeps_them(look: Callable[[int, int], object]) -> None:
    graph = trace(Counting(look), (torch.randn(2, 4),)).graph
    assert dict(graph.widths) == {"b": 6}
    assert "a" in {entry.name for entry in graph.left_alone}


def test_groups_that_disturb_each_other_are_not_offered_together() -> None:
    def either(a: int, b: int) -> None:
        if a < 8 and b < 6:
            raise ValueError("one of them has to stay whole")

    graph = trace(Counting(either), (torch.randn(2, 4),)).graph
    assert dict(graph.widths) == {"a": 8}
    assert "b" in {entry.name for entry in graph.left_alone}
