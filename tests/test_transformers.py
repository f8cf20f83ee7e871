"""Heads and MLP widths of transformers: found, cut exactly, compressed together with the rest, and exported."""

from __future__ import annotations

import math
from functools import lru_cache
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers_zoo import TOKENS, TRANSFORMERS, WIDTH, Config, Decoder, PackedGroups, Written

import automc
from automc.calibrate import calibrate
from automc.compression.apply import Stitcher
from automc.compression.prune import remove_channels, zero_consumers
from automc.compression.sharing import sharing_copy as shared
from automc.evaluate.data import Data, TensorSplit
from automc.export.onnx import build_onnx
from automc.policy import Policy, Prune, Quantize
from automc.search_spaces.prune import keep_counts
from automc.tracing.attention import replace_attention
from automc.tracing.trace import Traced, trace


@pytest.fixture(autouse=True)
def _operators(torchvision: ModuleType) -> None:
    """timm and transformers import torchvision."""


@lru_cache
def traced(name: str) -> Traced:
    entry = TRANSFORMERS[name]
    return trace(entry.make(), (entry.example(),))


def stitcher(name: str) -> Stitcher:
    entry, found = TRANSFORMERS[name], traced(name)
    return Stitcher(found, calibrate(found, [(entry.example(32),)], 32), (entry.example(16),))


def halved(found: Traced) -> list[tuple[str, Prune]]:
    return [(group.name, Prune(math.ceil(group.width / 2))) for group in found.graph.groups]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_heads_and_mlp_widths_are_found_and_the_model_computes_the_same(name: str) -> None:
    entry, found = TRANSFORMERS[name], traced(name)
    groups = found.graph.groups
    assert tuple(group.width for group in groups if group.unit == "heads") == entry.heads
    inner = {group.name: group.width for group in groups if group.unit == "channels" and "pooler" not in group.name}
    assert tuple(inner.values()) == entry.widths
    torch.testing.assert_close(found.model(entry.example()), entry.make()(entry.example()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("kept", [lambda width: range(1), lambda width: range(1, width)])
def test_cutting_equals_zeroing_the_weights_that_read(name: str, kept: object) -> None:
    found, groups = traced(name), traced(name).graph.groups
    keep = {group.name: tuple(kept(group.width)) for group in groups}  # type: ignore[operator]
    zeroed, cut = shared(found.model), shared(found.model)
    zero_consumers(zeroed, groups, keep)
    remove_channels(cut, groups, keep)
    x = TRANSFORMERS[name].example(3, seed=5)
    torch.testing.assert_close(cut(x), zeroed(x), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(cut(x), found.model(x), atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_pruned_model_is_smaller_and_its_file_computes_the_same(name: str) -> None:
    entry, stitch = TRANSFORMERS[name], stitcher(name)
    model = stitch.apply(Policy.of(halved(stitch.traced)))
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in stitch.traced.model.parameters())
    file = build_onnx(model, (entry.example(),), reduce_range=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: entry.example(seed=3).numpy()})[0]
    np.testing.assert_allclose(found, model(entry.example(seed=3)).detach().numpy(), atol=1e-3)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_heads_and_integers_go_together(name: str) -> None:
    entry, stitch = TRANSFORMERS[name], stitcher(name)
    layers = [(layer.name, Quantize(8, 8)) for layer in stitch.traced.graph.layers if layer.quantize]
    pruned = stitch.apply(Policy.of(halved(stitch.traced)))
    model = stitch.apply(Policy.of([*halved(stitch.traced), *layers]))
    expected, found = pruned(entry.example(16)), model(entry.example(16))
    assert float((found - expected).norm()) < 0.2 * float((expected - expected.mean(0)).norm())


# what is read, and what is left alone


def test_a_head_group_names_the_numbers_that_follow() -> None:
    groups = traced("grouped_query").graph.groups
    assert {(a.name, a.per_unit) for a in groups[0].attributes} == {("n_heads", 2), ("n_kv_heads", 1)}
    assert groups[0].producers == tuple(f"blocks.0.attention.w{x}" for x in "qkv")
    assert [len(member.index[0]) for member in groups[0].members] == [8, 4, 4, 8]


def test_a_shared_configuration_stays_as_it_is() -> None:
    config = Config()
    found = trace(Decoder(PackedGroups(config), PackedGroups(config)).eval(), (TRANSFORMERS["bert"].example(),))
    model = shared(found.model)
    remove_channels(model, found.graph.groups, {found.graph.groups[0].name: (1,)})
    held = [module.config for module in model.modules() if isinstance(module, PackedGroups)]
    assert [(c.num_attention_heads, c.num_key_value_heads) for c in held] == [(2, 1), (4, 2)]
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)


def test_heads_written_into_the_code_are_left_alone_with_a_reason() -> None:
    graph = trace(Decoder(Written()).eval(), (TRANSFORMERS["bert"].example(),)).graph
    assert [group.unit for group in graph.groups] == ["channels"]
    assert "heads" in {entry.name: entry.reason for entry in graph.left_alone}["blocks.0.attention"]


def test_zero_projections_do_not_hide_the_heads() -> None:
    """Many networks start so; on their own weights every reading would pass."""
    model = TRANSFORMERS["interleaved"].make()
    for name, parameter in model.named_parameters():
        if "proj" in name:
            nn.init.zeros_(parameter)
    graph = trace(model, (TRANSFORMERS["bert"].example(),)).graph
    assert graph.groups == traced("interleaved").graph.groups


@pytest.mark.parametrize(("width", "count"), [(12, 8), (3, 3), (8, 8)])
def test_every_number_of_heads_may_be_kept_up_to_the_levels(width: int, count: int) -> None:
    group = traced("bert").graph.groups[0]
    counts = keep_counts(type(group)(group.name, width, (), "heads"), channel_block=8, levels=8)
    assert len(counts) == count
    assert (counts[0], counts[-1]) == (width, max(1, round(width / 8)))


# nn.MultiheadAttention


class Calls(nn.Module):
    """One nn.MultiheadAttention over (batch, tokens, WIDTH), called with masks, for its weights, and on single samples."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4, **options)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x if self.attention.batch_first else x.transpose(0, 1)
        causal = torch.ones(TOKENS, TOKENS).triu(1).bool()
        padding = (torch.arange(TOKENS) == TOKENS - 1).expand(x.numel() // TOKENS // WIDTH, -1)
        output, weights = self.attention(x, x, x, key_padding_mask=padding, attn_mask=causal)
        other, _ = self.attention(x[:, 0], x[:, 0], x[:, 0], need_weights=False)
        return output + other.mean(), weights


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_an_attention_is_taken_apart_without_changing_anything(batch_first: bool, bias: bool) -> None:
    model = Calls(batch_first=batch_first, bias=bias).eval()
    x = torch.randn(3, TOKENS, WIDTH)
    split, left_alone = replace_attention(model, (x,))
    assert not left_alone
    assert not any(isinstance(module, nn.MultiheadAttention) for module in split.modules())
    torch.testing.assert_close(split(x), model(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "reason"), [({"kdim": WIDTH, "vdim": 8}, "another width"), ({"add_bias_kv": True}, "of its own")]
)
def test_an_attention_that_is_not_supported_stays(options: dict[str, object], reason: str) -> None:
    model = nn.Sequential(nn.MultiheadAttention(WIDTH, 4, **options))  # type: ignore[arg-type]
    split, left_alone = replace_attention(model, ())
    assert isinstance(split.get_submodule("0"), nn.MultiheadAttention)
    assert any(reason in entry.reason for entry in left_alone)


class Looks(nn.Module):
    """Computes with the packed weights of its attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.attention.in_proj_weight)


def test_an_attention_whose_packed_weights_are_used_stays() -> None:
    model, left_alone = replace_attention(Looks(), (torch.randn(2, TOKENS, WIDTH),))
    assert isinstance(model, Looks)
    assert "packed weights" in left_alone[0].reason


# the whole job


def data(name: str) -> Data:
    """Labels are the model's own answers."""
    entry = TRANSFORMERS[name]
    splits = []
    for seed, count in enumerate((64, 64, 64, 64), start=20):
        x = entry.example(count, seed)
        with torch.no_grad():
            splits.append(TensorSplit(x, entry.make()(x).argmax(1), 32))
    return Data(*splits, name="own answers")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm_vit", "bert"])
def test_a_transformer_is_compressed_from_end_to_end(
    name: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOMC_CACHE", f"{tmp_path}/cache")
    options = {"trials": 6, "recover": "1s", "tracking_uri": "", "batch_size": 8, "profile": "3s", "name": "run"}
    result = automc.compress(
        TRANSFORMERS[name].make(), data=data(name), runs=f"{tmp_path}", budget="95%macs", **options
    )
    assert result.onnx
