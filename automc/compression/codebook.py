"""A code book for the weights of a whole layer, by k-means (Han et al. 2016, "Deep Compression", arXiv 1510.00149, section 3).

The clusters start evenly spaced, which that paper finds best because it keeps the few large weights. Each weight counts as much as its
input varies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from automc.compression.grid import Grid
from automc.policy import Quantize

__all__ = ["learn_codebook"]

_SAMPLE = 16_384
"""Weights that the clusters are learned from, evenly spaced through the layer."""
_ITERATIONS = 50


def learn_codebook(weight: Tensor, spec: Quantize, importance: Tensor) -> Grid:
    """The grid of at most 2^bits values, for (outputs, features) weights; `importance` (features,).

    Zero is one of them where some weights are exactly zero: what was made sparse stays so.
    """
    from sklearn.cluster import KMeans  # takes as long to import as torch, and few models have a code book

    step = max(1, weight.numel() // _SAMPLE) | 1  # odd, so that it does not fall on the same features in every row
    values, share = weight.flatten()[::step], importance.repeat(len(weight))[::step]
    clusters = min(2**spec.weight_bits, len(values.unique()))
    start = torch.linspace(float(values.min()), float(values.max()), clusters)
    means = KMeans(clusters, init=start[:, None].numpy(), n_init=1, max_iter=_ITERATIONS, random_state=0)
    means.fit(values[:, None].numpy(), sample_weight=share.clamp_min(1e-12).numpy())
    book = torch.from_numpy(means.cluster_centers_[:, 0]).to(weight.dtype).sort().values
    if bool((weight == 0).any()):
        book[book.abs().argmin()] = 0.0
    unused = torch.zeros(len(weight), 0)
    return Grid(spec, unused, unused, book)
