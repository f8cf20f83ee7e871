"""Low-rank factorisation alone: method and rank of each convolution and linear layer.

SVD after Zhang et al. 2016 (1505.06798); spatial SVD after Jaderberg et al. 2014 (1405.3866); Tucker-2 after Kim et al. 2016
(1511.06530); CP after Lebedev et al. 2015 (1412.6553); tensor train after Garipov et al. 2016 (1611.03214).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Literal, TypeAlias

from automc.errors import MissingError
from automc.factors import factored_macs, factors_of_layer
from automc.graph import LayerGraph, LayerSpec
from automc.policy import LowRank
from automc.space import Domain, SearchSpace

__all__ = ["domains", "low_rank", "tensor"]

Method: TypeAlias = Literal["svd", "spatial", "tucker", "cp", "tt"]
Shares: TypeAlias = Mapping[Method, Sequence[float]]
"""Method -> the shares of the layer's MACs that its factors should keep."""

_MOST_MACS = 0.8
"""A factorisation that keeps more of the layer's MACs than this is not offered: two small kernels cost more than one."""
_NARROWEST = 16
_MATRIX: Shares = {"svd": (0.75, 0.5, 0.25)}
_KERNEL: Shares = {"spatial": (0.75, 0.5, 0.25), "svd": (0.5,)}
"""At equal MACs spatial factors err least, and take no longer; those of the SVD have fewer channels in between."""
_EVERY: Shares = {**_KERNEL, "tucker": (0.5, 0.25)}
_LINE: Shares = {"svd": (0.75, 0.5, 0.25), "tucker": (0.25,)}
"""For k x 1 and 1 x k kernels, which spatial factors do not split."""
_TENSOR: Shares = {"cp": (0.5, 0.25, 0.125), "tt": (0.5, 0.25)}


def low_rank(graph: LayerGraph, *, channel_block: int) -> SearchSpace:
    """One rank domain per layer worth factorising, with Tucker-2 too, and nothing else."""
    return SearchSpace(tuple(domains(graph, channel_block, _EVERY)))


def tensor(graph: LayerGraph, *, channel_block: int) -> SearchSpace:
    """Like `low_rank`, with CP and tensor-train factors of k x k convolutions, which take minutes.

    Raises:
        MissingError: tensorly, which computes them, is not installed.
    """
    if find_spec("tensorly") is None:
        raise MissingError(
            "CP and tensor-train factors need tensorly.", remedy="Install it: pip install automc[tensor]"
        )
    return SearchSpace(tuple(domains(graph, channel_block, _TENSOR)))


def domains(graph: LayerGraph, channel_block: int, kernel: Shares = _KERNEL) -> list[Domain]:
    """The rank domains; none for depthwise, grouped and tiny layers, nor where `LayerSpec.low_rank` is False.

    `kernel` is what convolutions wider than 1 x 1 are offered; 1 x 1 convolutions and linear layers are matrices, for which the SVD is best.
    """
    found = []
    for layer in graph.layers:
        choices = _choices(layer, channel_block, kernel) if layer.low_rank else []
        if choices:
            found.append(Domain(layer.name, LowRank.knob, (None, *choices)))
    return found


def _choices(layer: LayerSpec, block: int, kernel: Shares) -> list[LowRank]:
    """Different ranks from most to fewest MACs."""
    narrow = min(layer.features if layer.kind == "recurrent" else layer.in_channels, layer.out_channels)
    if layer.kind not in ("conv", "linear", "recurrent") or narrow < _NARROWEST:
        return []
    shares = kernel if min(layer.kernel) > 1 else _LINE if max(layer.kernel) > 1 else _MATRIX
    found = {_at_share(layer, share, block, method) for method, wanted in shares.items() for share in wanted}
    useful = [spec for spec in found if spec and factored_macs(layer, spec) <= _MOST_MACS * layer.macs]
    return sorted(useful, key=lambda spec: (-factored_macs(layer, spec), spec))


def _at_share(layer: LayerSpec, share: float, block: int, method: Method) -> LowRank | None:
    """The largest rank whose factors keep at most `share` of the MACs, in whole blocks where one block fits."""
    rank = 0
    while _fits(layer, LowRank(rank + 1, method), share):
        rank += 1
    step = next((s for s in (block, 4, 1) if rank >= s), 1)
    return LowRank(rank // step * step, method) if rank else None


def _fits(layer: LayerSpec, spec: LowRank, share: float) -> bool:
    """Whether the rank is below what the shape caps it at, and its factors keep at most `share` of the MACs."""
    return factors_of_layer(layer, spec)[-1].inputs == spec.rank and factored_macs(layer, spec) <= share * layer.macs
