"""nn.MultiheadAttention as a module of four linear layers, which compression can see.

PyTorch packs the projections of queries, keys and values into one parameter that belongs to no layer, and in evaluation
mode nn.TransformerEncoderLayer computes the whole block in one fused call. The module here takes the same arguments and
returns the same (Vaswani et al. 2017, "Attention Is All You Need", arXiv 1706.03762, section 3.2); `replace_attention`
puts it in where a test on random inputs shows that it does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automc.compression.sharing import sharing_copy
from automc.graph import LeftAlone
from automc.outputs import tensors_of

__all__ = ["SplitAttention", "replace_attention"]

_TOKENS = (5, 7)
"""Queries and keys of the test."""


class SplitAttention(nn.Module):
    """Multi-head attention with `query`, `key`, `value` and `out` as linear layers."""

    in_proj_bias = None
    """nn.TransformerEncoderLayer takes its fused path only where the attention has this."""
    _qkv_same_embed_dim = True

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.head_dim = original.num_heads, original.head_dim
        self.batch_first, self.dropout = original.batch_first, original.dropout
        weights = original.in_proj_weight.detach().chunk(3)
        packed: Tensor | None = original.in_proj_bias
        biases = (None, None, None) if packed is None else packed.detach().chunk(3)
        self.query, self.key, self.value = (_linear(w, b) for w, b in zip(weights, biases, strict=True))
        self.out = _linear(original.out_proj.weight, original.out_proj.bias)
        self.train(original.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The arguments and results of nn.MultiheadAttention.

        `is_causal` only says what `attn_mask` holds, as there, and the mask is what counts.
        """
        single = query.dim() == 2
        if single:
            query, key, value = (tensor.unsqueeze(0) for tensor in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
        q, k, v = self._heads(self.query(query)), self._heads(self.key(key)), self._heads(self.value(value))
        mask = self._mask(q, key_padding_mask, attn_mask)
        dropout = self.dropout if self.training else 0.0
        weights = _weights(q, k, mask) if need_weights else None
        if weights is None:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        else:
            mixed = F.dropout(weights, dropout) @ v
        output = self.out(mixed.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if single:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def _heads(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, heads x head_dim) -> (batch, heads, tokens, head_dim)."""
        return tokens.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _mask(self, q: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """What is added to the scores, broadcast to (batch, heads, queries, keys); True in a mask of booleans means hidden."""
        total: Tensor | None = None
        if mask is not None:
            if mask.dim() == 3:  # (batch x heads, queries, keys)
                mask = mask.unflatten(0, (q.shape[0], -1))
            total = _additive(mask, q)
        if padding is not None:
            hidden = _additive(padding, q)[:, None, None, :]
            total = hidden if total is None else total + hidden
        return total


def replace_attention(model: nn.Module, example: Sequence[Tensor]) -> tuple[nn.Module, list[LeftAlone]]:
    """`model` with a SplitAttention in the place of every nn.MultiheadAttention that it equals.

    Returns:
        the new model, which shares parameters with `model`, and the attentions that stay, with the reason. All stay where
        the whole model would give something else on `example`.
    """
    names = [name for name, module in model.named_modules() if name and isinstance(module, nn.MultiheadAttention)]
    if not names:
        return model, []
    split = sharing_copy(model)
    left_alone = _replace(split)
    if len(left_alone) == len(names):
        return model, left_alone
    if _same_outputs(model, split, example):
        return split, left_alone
    reason = "the model uses its packed weights, or lets it compute on nested tensors"
    return model, [LeftAlone(name, reason) for name in names]


def _replace(model: nn.Module) -> list[LeftAlone]:
    left_alone, splits = [], dict[nn.Module, nn.Module]()
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # nested tensors are made for the fused path alone
        if not name or not isinstance(module, nn.MultiheadAttention):
            continue
        reason = _unsupported(module)
        if reason:
            left_alone.append(LeftAlone(name, reason))
        else:
            model.set_submodule(name, splits.setdefault(module, SplitAttention(module)))
    return left_alone


def _same_outputs(model: nn.Module, split: nn.Module, example: Sequence[Tensor]) -> bool:
    small = [tensor[:1] for tensor in example]
    try:
        with torch.no_grad():
            found = tensors_of(split(*(tensor.clone() for tensor in small)))
            expected = tensors_of(model(*(tensor.clone() for tensor in small)))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    except Exception:  # the model's code may look into its attentions in any way
        return False
    return True


def _unsupported(module: nn.MultiheadAttention) -> str:
    if not module._qkv_same_embed_dim:
        return "its keys and values have another width than its queries"
    if module.bias_k is not None or module.add_zero_attn:
        return "it appends a key and a value of its own"
    return "" if _equal(module, SplitAttention(module)) else "its attention is not that of PyTorch"


def _equal(original: nn.MultiheadAttention, split: SplitAttention) -> bool:
    """Whether both give the same outputs and weights for random queries, keys, values and a padding mask."""
    generator = torch.Generator().manual_seed(0)
    query, keys = (torch.randn(2, tokens, original.embed_dim, generator=generator) for tokens in _TOKENS)
    values = torch.randn(keys.shape, generator=generator)
    padding = torch.zeros(keys.shape[:2], dtype=torch.bool)
    padding[1, -2:] = True
    device, dtype = split.out.weight.device, split.out.weight.dtype
    inputs = [tensor.to(device, dtype) for tensor in (query, keys, values)]
    if not original.batch_first:
        inputs = [tensor.transpose(0, 1) for tensor in inputs]
    with torch.no_grad():
        expected = original(*inputs, key_padding_mask=padding.to(device))
        found = split(*inputs, key_padding_mask=padding.to(device))
    return all(torch.allclose(e, f, rtol=1e-3, atol=1e-4) for e, f in zip(expected, found, strict=True))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone())
    return linear


def _weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return (scores if mask is None else scores + mask).softmax(-1)


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, float("-inf"))
