"""Low-rank factorisation alone: the rank of each convolution and linear layer, as SVD or Tucker-2 factors.

SVD after Jaderberg et al. 2014 (1405.3866) and Zhang et al. 2016 (1505.06798); Tucker-2 after Kim et al. 2016 (1511.06530).
"""

from __future__ import annotations

from automc.graph import LayerGraph, LayerSpec
from automc.policy import LowRank
from automc.space import Domain, SearchSpace

__all__ = ["domains", "factored_macs", "low_rank"]

_MOST_MACS = 0.8
"""A factorisation that keeps more of the layer's MACs than this is not offered: two small kernels cost more than one."""
_SVD_SHARES = (0.75, 0.5, 0.25)
_TUCKER_SHARES = (0.5, 0.25)
_SVD_CHANNELS = 16
_TUCKER_CHANNELS = 32


def low_rank(graph: LayerGraph, *, channel_block: int, int8: bool = True, levels: int = 8) -> SearchSpace:
    """One rank domain per layer worth factorising and nothing else; `int8` and `levels` make no difference."""
    return SearchSpace(tuple(domains(graph, channel_block)))


def domains(graph: LayerGraph, channel_block: int) -> list[Domain]:
    """The rank domains; none for depthwise, grouped and tiny layers, nor where `LayerSpec.low_rank` is False."""
    found = []
    for layer in graph.layers:
        choices = _choices(layer, channel_block) if layer.low_rank else []
        if choices:
            found.append(Domain(layer.name, LowRank.knob, (None, *choices)))
    return found


def factored_macs(layer: LayerSpec, spec: LowRank) -> int:
    """Multiply-accumulates per sample of the factors that replace `layer` at its dense width."""
    rank, taps = spec.rank, layer.kernel[0] * layer.kernel[1]
    if layer.kind == "recurrent":
        return layer.positions * (
            rank * layer.features + (layer.in_channels - layer.features + rank) * layer.out_channels
        )
    if spec.method == "svd":
        return layer.positions * rank * (layer.in_channels * taps + layer.out_channels)
    entry = layer.in_positions * layer.in_channels * rank
    return entry + layer.positions * rank * (rank * taps + layer.out_channels)


def _choices(layer: LayerSpec, block: int) -> list[LowRank]:
    """Ranks from most to fewest MACs."""
    narrow = min(layer.features if layer.kind == "recurrent" else layer.in_channels, layer.out_channels)
    if layer.kind not in ("conv", "linear", "recurrent") or narrow < _SVD_CHANNELS:
        return []
    found = {_at_share(layer, share, block, LowRank(1, "svd")) for share in _SVD_SHARES}
    if layer.kind == "conv" and max(layer.kernel) > 1 and narrow >= _TUCKER_CHANNELS:
        found |= {_at_share(layer, share, block, LowRank(1, "tucker")) for share in _TUCKER_SHARES}
    useful = [spec for spec in found if spec and factored_macs(layer, spec) <= _MOST_MACS * layer.macs]
    return sorted(useful, key=lambda spec: (-factored_macs(layer, spec), spec))


def _at_share(layer: LayerSpec, share: float, block: int, unit: LowRank) -> LowRank | None:
    """The largest rank whose factors keep at most `share` of the MACs, in whole blocks where one block fits."""
    widest = min(layer.features if layer.kind == "recurrent" else layer.in_channels, layer.out_channels)
    ranks = [r for r in range(1, widest) if factored_macs(layer, LowRank(r, unit.method)) <= share * layer.macs]
    if not ranks:
        return None
    rank = ranks[-1]
    step = next((s for s in (block, 4, 1) if rank >= s), 1)
    return LowRank(rank // step * step, unit.method)
