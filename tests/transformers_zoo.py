"""Tiny transformers, one per way of writing attention, each with an example input and its head groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, TOKENS, CLASSES, WORDS = 24, 6, 5, 40


class RMSNorm(nn.Module):
    """Root mean square normalisation as people write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


def rotate(x: Tensor) -> Tensor:
    """Rotary position embedding of (batch, heads, tokens, head_dim)."""
    half = x.shape[-1] // 2
    frequencies = 100.0 ** (-torch.arange(half) / half)
    angles = torch.arange(x.shape[-2])[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class GroupedQuery(nn.Module):
    """Grouped-query attention, causal, with rotary embeddings; `turns` gives query head h the key head h modulo their number."""

    def __init__(self, heads: int = 6, kv_heads: int = 3, head_dim: int = 4, turns: bool = False) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim, self.turns = heads, kv_heads, head_dim, turns
        self.repeats = heads // kv_heads
        self.wq = nn.Linear(WIDTH, heads * head_dim, bias=False)
        self.wk = nn.Linear(WIDTH, kv_heads * head_dim, bias=False)
        self.wv = nn.Linear(WIDTH, kv_heads * head_dim, bias=False)
        self.wo = nn.Linear(heads * head_dim, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q = rotate(self.wq(x).view(batch, tokens, self.n_heads, self.head_dim).transpose(1, 2))
        k = rotate(self.wk(x).view(batch, tokens, self.n_kv_heads, self.head_dim).transpose(1, 2))
        v = self.wv(x).view(batch, tokens, self.n_kv_heads, self.head_dim).transpose(1, 2)
        if self.turns:
            k, v = k.repeat(1, self.repeats, 1, 1), v.repeat(1, self.repeats, 1, 1)
        else:
            k, v = k.repeat_interleave(self.repeats, 1), v.repeat_interleave(self.repeats, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(mixed.transpose(1, 2).reshape(batch, tokens, self.n_heads * self.head_dim))


class Interleaved(nn.Module):
    """One layer for queries, keys and values that lie head by head, and a bias per head."""

    def __init__(self, heads: int = 4, head_dim: int = 6) -> None:
        super().__init__()
        self.heads, self.inner_dim = heads, heads * head_dim
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * self.inner_dim), nn.Linear(self.inner_dim, WIDTH)
        self.distance = nn.Parameter(torch.randn(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(3, -1)
        away = (torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])).abs()
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 - self.distance * away
        mixed = (scores.softmax(-1) @ v).transpose(1, 2)
        return self.proj(mixed.reshape(*x.shape[:2], self.inner_dim))


class PackedGroups(nn.Module):
    """All queries, then all keys, then all values of a grouped-query attention out of one layer; counts in a configuration."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.head_dim = WIDTH // config.num_attention_heads
        features = self.head_dim * (config.num_attention_heads + 2 * config.num_key_value_heads)
        self.qkv, self.out = nn.Linear(WIDTH, features), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        split = [heads * self.head_dim, kv_heads * self.head_dim, kv_heads * self.head_dim]
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in self.qkv(x).split(split, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class MultiQuery(nn.Module):
    """One key and one value head that all query heads share."""

    def __init__(self, heads: int = 4, head_dim: int = 6) -> None:
        super().__init__()
        self.nhead, self.head_dim = heads, head_dim
        self.q, self.kv, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * head_dim), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.nhead, self.head_dim)).transpose(1, 2)
        k, v = self.kv(x).unsqueeze(1).chunk(2, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Written(nn.Module):
    """Attention with its number of heads written into the code: nothing that could follow."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


class SwiGLU(nn.Module):
    """Gated MLP."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(WIDTH, hidden, bias=False), nn.Linear(WIDTH, hidden, bias=False)
        self.down = nn.Linear(hidden, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Pre-norm block around any attention."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention = RMSNorm(WIDTH), attention
        self.norm2, self.mlp = RMSNorm(WIDTH), SwiGLU()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """(batch, tokens) words -> (batch, CLASSES)."""

    def __init__(self, *attentions: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.Sequential(*(Block(attention) for attention in attentions))
        self.norm, self.head = RMSNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(words))).mean(1))


class Encoder(nn.Module):
    """nn.TransformerEncoder over (batch, tokens, WIDTH), or over (tokens, batch, WIDTH) inside."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 32, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first)
        self.batch_first, self.head = batch_first, nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        return self.head(self.encoder(x).mean(1 if self.batch_first else 0))


class Output(nn.Module):
    """A model of the transformers library, as one that returns its scores."""

    def __init__(self, inner: nn.Module, key: str) -> None:
        super().__init__()
        self.inner, self.key = inner, key

    def forward(self, words: Tensor) -> Tensor:
        output: Tensor = self.inner(words)[self.key]
        return output


class Config:
    """Numbers that both blocks of a model share."""

    num_attention_heads: int
    num_key_value_heads: int

    def __init__(self) -> None:
        self.num_attention_heads, self.num_key_value_heads = 4, 2


def packed_groups() -> nn.Module:
    config = Config()
    return Decoder(PackedGroups(config), PackedGroups(config))


def timm_vit() -> nn.Module:
    timm = pytest.importorskip("timm")
    options = {"img_size": 16, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 3, "num_classes": CLASSES}
    model: nn.Module = timm.models.VisionTransformer(**options, init_values=0.5)
    return model


def timm_deit() -> nn.Module:
    timm = pytest.importorskip("timm")
    options = {"img_size": 16, "embed_dim": WIDTH, "depth": 2, "num_heads": 3, "num_classes": CLASSES}
    model: nn.Module = timm.create_model("deit_tiny_patch16_224", pretrained=False, **options)
    return model


def torchvision_vit() -> nn.Module:
    models = pytest.importorskip("torchvision.models.vision_transformer")
    model: nn.Module = models.VisionTransformer(16, 8, 2, 4, WIDTH, 32, num_classes=CLASSES)
    return model


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=16, num_labels=CLASSES,
    )  # fmt: skip
    return Output(transformers.BertForSequenceClassification(config), "logits")


def llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3,
        intermediate_size=32, max_position_embeddings=16,
    )  # fmt: skip
    return Output(transformers.LlamaForCausalLM(config), "logits")


@dataclass(frozen=True)
class Entry:
    """A transformer, what it reads, and the units of each head group and each MLP."""

    build: Callable[[], nn.Module]
    reads: str
    heads: tuple[int, ...]
    widths: tuple[int, ...]

    def make(self, seed: int = 0) -> nn.Module:
        """The network with fixed random weights, large enough for every block to matter."""
        torch.manual_seed(seed)
        model = self.build().eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        return model

    def example(self, count: int = 2, seed: int = 1) -> Tensor:
        """`count` random samples."""
        generator = torch.Generator().manual_seed(seed)
        if self.reads == "words":
            return torch.randint(0, WORDS, (count, TOKENS), generator=generator)
        shape = (3, 16, 16) if self.reads == "images" else (TOKENS, WIDTH)
        return torch.randn(count, *shape, generator=generator)


TRANSFORMERS = {
    "timm_vit": Entry(timm_vit, "images", (3, 3), (96, 96)),
    "timm_deit": Entry(timm_deit, "images", (3, 3), (96, 96)),
    "torchvision_vit": Entry(torchvision_vit, "images", (4, 4), (32, 32)),
    "bert": Entry(bert, "words", (4, 4), (32, 32)),
    "llama": Entry(llama, "words", (3, 3), (32, 32)),
    "grouped_query": Entry(lambda: Decoder(GroupedQuery(), GroupedQuery()), "words", (3, 3), (32, 32)),
    "in_turns": Entry(lambda: Decoder(GroupedQuery(turns=True)), "words", (3,), (32,)),
    "interleaved": Entry(lambda: Decoder(Interleaved(), Interleaved()), "words", (4, 4), (32, 32)),
    "packed_groups": Entry(packed_groups, "words", (2, 2), (32, 32)),
    "multi_query": Entry(lambda: Decoder(MultiQuery()), "words", (4,), (32,)),
    "encoder": Entry(lambda: Encoder(batch_first=True), "tokens", (4, 4), (32, 32)),
    "encoder_time_first": Entry(lambda: Encoder(batch_first=False), "tokens", (4, 4), (32, 32)),
}
