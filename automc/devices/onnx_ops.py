"""ONNX operators in PyTorch, inputs in the order of the specification, attributes by name. Shapes and axes come as Python integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["OPS"]

Ints = Sequence[int]
_FLOATING = (1, 10, 11)
"""ONNX's numbers for float, float16 and double."""


def _conv(x: Tensor, w: Tensor, b: Tensor | None = None, *, group: int = 1, strides: Ints = (), dilations: Ints = (),
          pads: Ints = (), **_: Any) -> Tensor:  # fmt: skip
    rank = x.dim() - 2
    x, pads = _padded(x, pads or (0,) * 2 * rank, 0.0)
    run = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return run(x, w, b, tuple(strides) or 1, pads, tuple(dilations) or 1, group)


def _conv_transpose(x: Tensor, w: Tensor, b: Tensor | None = None, *, group: int = 1, strides: Ints = (),
                    dilations: Ints = (), pads: Ints = (), output_padding: Ints = (), **_: Any) -> Tensor:  # fmt: skip
    rank = x.dim() - 2
    run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    pads = tuple(pads) or (0,) * 2 * rank
    return run(x, w, b, tuple(strides) or 1, pads[:rank], tuple(output_padding) or 0, group, tuple(dilations) or 1)


def _padded(x: Tensor, pads: Ints, value: float) -> tuple[Tensor, tuple[int, ...]]:
    """The tensor and the symmetric padding that is left; uneven pads (begins, then ends) are applied."""
    rank = len(pads) // 2
    begins, ends = tuple(pads[:rank]), tuple(pads[rank:])
    if begins == ends:
        return x, begins
    return F.pad(x, _reversed_pairs(begins, ends), value=value), (0,) * rank


def _reversed_pairs(begins: Ints, ends: Ints) -> list[int]:
    """PyTorch's order: the last axis first, (begin, end) each."""
    return [value for pair in zip(reversed(begins), reversed(ends), strict=True) for value in pair]


def _max_pool(x: Tensor, *, kernel_shape: Ints, strides: Ints = (), pads: Ints = (), dilations: Ints = (),
              ceil_mode: int = 0, **_: Any) -> Tensor:  # fmt: skip
    rank = len(kernel_shape)
    x, pads = _padded(x, pads or (0,) * 2 * rank, float("-inf"))
    run = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    return run(x, tuple(kernel_shape), tuple(strides) or 1, pads, tuple(dilations) or 1, bool(ceil_mode))


def _average_pool(x: Tensor, *, kernel_shape: Ints, strides: Ints = (), pads: Ints = (), ceil_mode: int = 0,
                  count_include_pad: int = 0, **_: Any) -> Tensor:  # fmt: skip
    rank = len(kernel_shape)
    pads = tuple(pads)[:rank] or (0,) * rank
    run: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    return run(x, tuple(kernel_shape), tuple(strides) or 1, pads, bool(ceil_mode), bool(count_include_pad))


def _gemm(a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0,
          transB: int = 0) -> Tensor:  # fmt: skip
    a, weight = a.t() if transA else a, b if transB else b.t()
    if alpha == beta == 1.0 and (c is None or c.dim() <= 1):
        return F.linear(a, weight, c)
    product = alpha * F.linear(a, weight)
    return product if c is None else product + beta * c


def _clip(x: Tensor, low: Any = None, high: Any = None, **limits: float) -> Tensor:
    least, most = _number(low, limits.get("min")), _number(high, limits.get("max"))
    return x if least is None and most is None else torch.clamp(x, least, most)


def _number(value: Any, otherwise: float | None) -> float | None:
    return otherwise if value is None else float(value)


def _reshape(x: Tensor, shape: Ints, *, allowzero: int = 0) -> Tensor:
    return x.reshape([x.shape[i] if n == 0 and not allowzero else n for i, n in enumerate(shape)])


def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    rows = 1
    for size in x.shape[:axis]:
        rows *= size
    return x.reshape(rows, -1)


def _axes(x: Tensor, axes: Ints | None) -> tuple[int, ...]:
    return tuple(range(x.dim())) if axes is None else tuple(axes)


def _mean(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, **_: Any) -> Tensor:
    return x.mean(_axes(x, axes), keepdim=bool(keepdims))


def _sum(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, **_: Any) -> Tensor:
    return x.sum(_axes(x, axes), keepdim=bool(keepdims))


def _global_average(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


def _squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(x: Any, axes: Ints) -> Any:
    if not isinstance(x, Tensor):
        return [x]
    for axis in sorted(axes):
        x = x.unsqueeze(axis)
    return x


def _pad(x: Tensor, pads: Ints, value: Any = None, axes: Ints | None = None, *, mode: str = "constant") -> Tensor:
    begins, ends = [0] * x.dim(), [0] * x.dim()
    for index, axis in enumerate(_axes(x, axes)):
        begins[axis], ends[axis] = pads[index], pads[index + len(pads) // 2]
    names = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    pairs = _reversed_pairs(begins, ends)
    if mode != "constant":  # PyTorch wants the padded axes alone
        while len(pairs) > 2 and pairs[-2:] == [0, 0]:
            pairs = pairs[:-2]
        return F.pad(x, pairs, names[mode])
    return F.pad(x, pairs, value=float(value or 0.0))


def _slice(x: Any, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None) -> Any:
    if not isinstance(x, Tensor):
        return x[starts[0] : ends[0] : (steps or (1,))[0]]
    index = [slice(None)] * x.dim()
    for i, axis in enumerate(axes if axes is not None else range(len(starts))):
        index[axis] = slice(starts[i], ends[i], steps[i] if steps else 1)
    return x[tuple(index)]


def _gather(x: Any, index: Any, *, axis: int = 0) -> Any:
    if not isinstance(x, Tensor):
        return [x[i] for i in index] if isinstance(index, list) else x[index]
    if isinstance(index, int):
        return x.select(axis, index)
    where = torch.as_tensor(index, device=x.device)
    return x.index_select(axis, where.reshape(-1)).reshape(*x.shape[:axis], *where.shape, *x.shape[axis:][1:])


def _split(x: Tensor, sizes: Ints | None = None, *, axis: int = 0, num_outputs: int = 0) -> tuple[Tensor, ...]:
    return x.split(list(sizes) if sizes else -(-x.shape[axis] // num_outputs), axis)


def _concat(*parts: Any, axis: int) -> Any:
    if isinstance(parts[0], list):
        return [value for part in parts for value in part]
    return torch.cat(parts, axis)


def _layer_norm(x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5,
                **_: Any) -> Tensor:  # fmt: skip
    return F.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


def _batch_norm(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *, epsilon: float = 1e-5,
                **_: Any) -> Tensor:  # fmt: skip
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


def _dequantize(x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, block_size: int = 0,
                **_: Any) -> Tensor:  # fmt: skip
    shape = [1] * x.dim()
    if scale.dim() == 1:
        shape[axis] = -1
    if block_size:
        scale = scale.repeat_interleave(block_size, axis)
        zero = zero if zero is None else zero.repeat_interleave(block_size, axis)
    grid = scale.reshape(shape) if scale.dim() <= 1 else scale
    offset = 0.0 if zero is None else (zero.reshape(shape) if zero.dim() <= 1 else zero).to(grid.dtype)
    return (x.to(grid.dtype) - offset) * grid


def _cast(x: Any, *, to: int, **_: Any) -> Any:
    """Between floating types the program has one; sizes that are computed with become tensors."""
    return torch.tensor(x, dtype=torch.float32) if not isinstance(x, Tensor) and to in _FLOATING else x


OPS: Mapping[str, Callable[..., Any]] = {
    "Add": torch.add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": lambda **value: next(iter(value.values())),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DequantizeLinear": _dequantize,
    "Div": torch.div,
    "Dropout": lambda x, *_, **__: x,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Expand": lambda x, shape: x.expand(torch.broadcast_shapes(x.shape, tuple(shape))),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": lambda x, *, approximate="none": F.gelu(x, approximate=approximate),
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "HardSigmoid": lambda x, *, alpha=0.2, beta=0.5: torch.clamp(alpha * x + beta, 0.0, 1.0),
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda x, *, alpha=0.01: F.leaky_relu(x, alpha),
    "MatMul": torch.matmul,
    "MaxPool": _max_pool,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "PRelu": lambda x, slope: torch.where(x < 0, slope * x, x),
    "Pad": _pad,
    "Pow": torch.pow,
    "Reciprocal": torch.reciprocal,
    "ReduceMean": _mean,
    "ReduceSum": _sum,
    "Relu": torch.relu,
    "Reshape": _reshape,
    "Round": torch.round,
    "Shape": lambda x: list(x.shape),
    "Sigmoid": torch.sigmoid,
    "Slice": _slice,
    "Softmax": lambda x, *, axis=-1: torch.softmax(x, axis),
    "Softplus": F.softplus,
    "Split": _split,
    "Sqrt": torch.sqrt,
    "Squeeze": _squeeze,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
    "Transpose": lambda x, *, perm: x.permute(*perm),
    "Unsqueeze": _unsqueeze,
}
