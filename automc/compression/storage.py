"""How many bits the weights of a rounded layer take, in theory and in the file, and which layers integer kernels run. No tensors."""

from __future__ import annotations

import math
from dataclasses import replace

from automc.policy import Quantize

__all__ = ["as_run", "between_integers", "decoding_nodes", "file_bits", "file_bytes", "group_count", "runs_on_integers"]

_SCALE_BITS = 32
"""Of each scale and of each entry of a code book."""
_FILE_BITS = (2, 4, 8)
"""Integer types that ONNX stores packed."""


def runs_on_integers(spec: Quantize) -> bool:
    """Whether an 8-bit kernel computes exactly what `spec` says: its weights are 8-bit integers, whatever fewer they use.

    That takes 8-bit inputs, one scale per output and no zero point.
    """
    uniform = spec.codes != "kmeans" and spec.symmetric and spec.group_size == 0
    return spec.activation_bits == 8 and spec.weight_bits <= 8 and uniform


def as_run(spec: Quantize, *, reduce_range: bool) -> Quantize:
    """`spec` with 7-bit weights in place of 8-bit ones where it runs on integer kernels that saturate with the latter."""
    if reduce_range and spec.weight_bits == 8 and runs_on_integers(spec):
        return replace(spec, weight_bits=7)
    return spec


def between_integers(spec: Quantize | None) -> Quantize:
    """What a layer is rounded to that the runtime puts between integers: its weights keep fewer bits where they have them."""
    fewer = replace(spec, activation_bits=8) if spec is not None else None
    return fewer if fewer is not None and runs_on_integers(fewer) else Quantize(8, 8)


def group_count(spec: Quantize, features: int) -> int:
    """Scales per output channel; the last group may be smaller than the others. None in a code book."""
    if spec.codes == "kmeans":
        return 0
    return math.ceil(features / spec.group_size) if spec.group_size else 1


def file_bits(spec: Quantize) -> int:
    """Bits per weight in an ONNX file: 2, 4 or 8, the least that holds the codes. Binary codes take 2, for lack of a 1-bit type."""
    return next(bits for bits in _FILE_BITS if bits >= spec.weight_bits)


def file_bytes(spec: Quantize, outputs: int, features: int) -> float:
    """Bytes of a layer's codes, scales, zero points and code book in an ONNX file; every layer's codes start on a byte."""
    groups = group_count(spec, features)
    padded = groups * spec.group_size if spec.group_size and groups else features
    scales = outputs * groups * (_SCALE_BITS // 8 + (0 if spec.symmetric else 1))
    book = (_SCALE_BITS // 8 << spec.weight_bits) if spec.codes == "kmeans" else 0
    return math.ceil(outputs * padded * file_bits(spec) / 8) + scales + book


def decoding_nodes(spec: Quantize, features: int, *, on_integers: bool) -> int:
    """Nodes of an ONNX file that make a layer's weights of its codes, see `automc.export.stored`; 0 where a kernel takes the codes as they are."""
    if on_integers:
        return 0 if file_bits(spec) == 8 else 2
    groups = group_count(spec, features)
    filled_up = groups > 1 and features % spec.group_size > 0
    return 3 + (0 if spec.symmetric or not groups else 2) + (2 if filled_up else 0)
