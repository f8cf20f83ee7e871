"""Search spaces: what is offered, in which order, and what is not."""

from __future__ import annotations

import itertools
from dataclasses import replace
from inspect import signature
from typing import Any

import pytest

from automc.errors import InputError, MissingError
from automc.factors import factored_macs, factors_of
from automc.graph import ChannelGroup, Channels, LayerGraph, LayerKind, LayerSpec
from automc.policy import LowRank, Prune
from automc.registry import load, names
from automc.search_spaces.default import default
from automc.search_spaces.prune import keep_counts
from automc.space import SearchSpace


def conv(
    name: str, cin: int, cout: int, *, kernel: int = 3, size: int = 16, kind: LayerKind = "conv", **flags: Any
) -> LayerSpec:
    groups = cin if kind == "depthwise" else 1
    return LayerSpec(
        name, kind, Channels(cin), Channels(cout), cin, cout, (kernel, kernel), (1, 1), groups,
        (cin, size, size), (cout, size, size), bias=False, **flags,
    )  # fmt: skip


def group(width: int, unit: str = "channels") -> ChannelGroup:
    return ChannelGroup("g", width, (), unit)


def opened(name: str, graph: LayerGraph, **device: Any) -> SearchSpace:
    """The space of a name, told what it has a parameter for, as a search does."""
    build = load("space", name)
    known = {"channel_block": 8, "int8": True, **device}
    space: SearchSpace = build(graph, **{n: v for n, v in known.items() if n in signature(build).parameters})
    return space


@pytest.mark.parametrize(
    ("width", "block", "expected"),
    [
        (64, 8, (64, 56, 48, 40, 32, 24, 16, 8)),
        (16, 8, (16, 12, 8, 4)),
        (32, 16, (32, 28, 24, 20, 16, 12, 8, 4)),
        (6, 8, (6, 5, 4, 3, 2, 1)),
        (512, 16, (512, 448, 384, 320, 256, 192, 128, 64)),
        (65, 8, (65, 64, 56, 48, 40, 32, 24, 8)),
        (1, 8, (1,)),
    ],
)
def test_keep_counts_run_from_the_width_to_about_an_eighth(width: int, block: int, expected: tuple[int, ...]) -> None:
    assert keep_counts(group(width), block, 8) == expected


@pytest.mark.parametrize("levels", [1, 2, 5, 8])
def test_keep_counts_are_few_falling_and_aligned(levels: int) -> None:
    for width in range(1, 300):
        counts = keep_counts(group(width), 8, levels)
        assert len(counts) <= levels
        assert counts[0] == width
        assert all(a > b >= 1 for a, b in itertools.pairwise(counts))
        if width > 16:
            assert all(count % 8 == 0 for count in counts[1:])


def test_attention_heads_are_cut_one_by_one() -> None:
    assert keep_counts(group(4, "heads"), 16, 8) == (4, 3, 2, 1)


def test_low_rank_choices_save_macs_and_fall_in_cost() -> None:
    layer = conv("c", 64, 64)
    space = default(LayerGraph((layer,), ()), channel_block=8, int8=False)
    (domain,) = space.domains
    ranks = [spec for spec in domain.choices[1:] if isinstance(spec, LowRank)]
    macs = [factored_macs(layer, spec) for spec in ranks]
    assert {spec.method for spec in ranks} == {"svd", "spatial"}
    assert len(ranks) <= 5
    assert macs == sorted(macs, reverse=True)
    assert max(macs) <= 0.8 * layer.macs
    assert all(spec.rank % 8 == 0 for spec in ranks)


@pytest.mark.parametrize(
    ("kernel", "methods"),
    [
        ((1, 1), {"svd"}),
        ((1, 3), {"svd", "tucker"}),
        ((5, 1), {"svd", "tucker"}),
        ((3, 5), {"svd", "spatial", "tucker"}),
    ],
)
def test_methods_offered_suit_the_kernel(kernel: tuple[int, int], methods: set[str]) -> None:
    layer = replace(conv("c", 64, 64), kernel=kernel)
    (domain,) = opened("low_rank", LayerGraph((layer,), ())).domains
    assert {spec.method for spec in domain.choices if isinstance(spec, LowRank)} == methods


def test_tensor_methods_come_when_asked_for() -> None:
    graph = LayerGraph((conv("c", 64, 64), conv("p", 64, 64, kernel=1)), ())
    space = opened("tensor", graph)
    methods = [{spec.method for spec in d.choices if isinstance(spec, LowRank)} for d in space.domains]
    assert methods == [{"cp", "tt"}, {"svd"}]


def test_the_tensor_space_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automc.search_spaces.low_rank.find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"pip install automc\[tensor\]"):
        opened("tensor", LayerGraph((), ()))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # 8 x 4 outputs of 16 x 4 inputs: a 5 x 3 kernel with strides 2 and 1, 64 -> 32 channels, rank 8
        ("svd", 32 * (64 * 15 * 8 + 8 * 32)),
        ("spatial", 32 * (64 * 5 * 8 + 8 * 3 * 32)),
        ("tucker", 64 * 64 * 8 + 32 * (8 * 15 * 8 + 8 * 32)),
        ("cp", 64 * 64 * 8 + 32 * (8 * 5 + 8 * 3 + 8 * 32)),
        ("tt", 64 * 64 * 8 + 32 * (8 * 5 * 8 + 8 * 3 * 8 + 8 * 32)),
    ],
)
def test_factored_macs_by_hand(method: str, expected: int) -> None:
    layer = replace(
        conv("c", 64, 32), kernel=(5, 3), stride=(2, 1), in_shape=(64, 16, 4), out_shape=(32, 8, 4)
    )  # fmt: skip
    assert factored_macs(layer, LowRank(8, method)) == expected  # type: ignore[arg-type]


def test_ranks_are_capped_by_what_the_shape_can_feed() -> None:
    assert factors_of(LowRank(64, "svd"), 3, 64, (3, 3))[0].outputs == 27
    assert [f.outputs for f in factors_of(LowRank(64, "tucker"), 3, 64, (3, 3))] == [3, 27, 64]
    assert [f.outputs for f in factors_of(LowRank(64, "tt"), 3, 64, (3, 3))] == [3, 9, 27, 64]


@pytest.mark.parametrize(
    "layer",
    [
        conv("depthwise", 64, 64, kind="depthwise"),
        conv("first", 3, 64),
        conv("told not to", 64, 64, low_rank=False),
    ],
)
def test_no_rank_is_offered_where_none_helps(layer: LayerSpec) -> None:
    assert len(default(LayerGraph((layer,), ()), channel_block=8, int8=False)) == 0


def test_default_joins_the_three_knobs_and_honours_the_device() -> None:
    graph = LayerGraph((conv("a", 64, 64), conv("b", 64, 64, quantize=False)), (group(64),))
    knobs = [(domain.target, domain.knob) for domain in default(graph, channel_block=8, int8=True).domains]
    assert knobs == [("g", "prune"), ("a", "quantize"), ("a", "low_rank"), ("b", "low_rank")]
    without = default(graph, channel_block=8, int8=False)
    assert not without.columns("quantize")
    assert without.domains[0].choices[-1] == Prune(8)


@pytest.mark.parametrize("knob", ["prune", "quantize", "low_rank"])
def test_single_knob_spaces_hold_that_knob_only(knob: str) -> None:
    graph = LayerGraph((conv("a", 64, 64),), (group(64),))
    space = opened(knob, graph)
    assert {domain.knob for domain in space.domains} == {knob}


def test_every_registered_space_answers_an_empty_graph() -> None:
    for name in names("space"):
        assert len(opened(name, LayerGraph((), ()))) == 0


def test_levels_and_block_below_one_are_refused() -> None:
    with pytest.raises(InputError, match="1 or more"):
        default(LayerGraph((), ()), channel_block=0, int8=True)


def test_the_mixed_space_goes_from_integer_kernels_to_few_bits_in_the_file() -> None:
    graph = LayerGraph((conv("a", 64, 64), conv("b", 64, 64, quantize=False)), (group(64),))
    (domain,) = opened("mixed", graph).domains
    assert domain.labels[:4] == ("dense", "w8a8", "w8 (size only)", "w4 (size only)")
    (stored,) = opened("mixed", graph, int8=False).domains
    assert "w8a8" not in stored.labels
