"""From a policy to a compressed model, stitched from the database of layer variants at the cost of copying tensors.

What the variants of single layers cannot hold is done to the stitched model: channels leave norms, depthwise convolutions
and free parameters; grouped layers are rounded; batch norms that no layer absorbs take their statistics anew.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automc.calibrate import LayerStats
from automc.compression.carriers import Carriers, attach, dense_samples, set_ranges
from automc.compression.criteria import Pruning
from automc.compression.database import Database
from automc.compression.evidence import Evidence
from automc.compression.flow import Flow, read_flow
from automc.compression.norms import recalibrate, recalibrate_folded
from automc.compression.prune import dropped, remove_channels
from automc.compression.quantize import Quantized
from automc.compression.ranges import best_range
from automc.compression.refine import refine
from automc.compression.sharing import sharing_copy
from automc.compression.storage import as_run, between_integers, runs_on_integers
from automc.compression.variants import Key, remaining, take_outputs
from automc.errors import InputError
from automc.graph import ChannelGroup
from automc.policy import LowRank, Policy, Prune, Quantize, Sparsify
from automc.tracing.trace import Traced

__all__ = ["Stitcher"]

_CHECK = "`automc check` lists what can be compressed."


class Stitcher:
    """Applies policies to one traced and calibrated model.

    Args:
        range_batch: inputs that set what depends on the whole model: ranges of finalists, statistics of norms that stay.
        reduce_range: integer weights use 7 bits, for processors whose 8-bit kernels saturate.
        closure: the layers that the runtime runs on 8-bit integers when those given do; they are rounded as well.
        carries: the runtime runs what stands between integer layers on integers too; it is rounded as well.
        folder: where the database of layer variants is kept.
        pruning: which channels go first, and whether the layers that read them are refitted.
        evidence: what criteria other than "obs" look at.
    """

    def __init__(
        self,
        traced: Traced,
        stats: Mapping[str, LayerStats],
        range_batch: Sequence[Tensor],
        *,
        reduce_range: bool = False,
        closure: Callable[[frozenset[str]], frozenset[str]] | None = None,
        carries: bool = True,
        folder: Path | None = None,
        pruning: Pruning | None = None,
        evidence: Evidence | None = None,
    ) -> None:
        self.traced = traced
        self.range_batch = tuple(range_batch)
        self.pruning = pruning or Pruning()
        evidence = evidence or Evidence(traced, self.range_batch, seed=self.pruning.seed)
        self.database = Database(traced, stats, folder, self.pruning, evidence)
        self.reduce_range = reduce_range
        self.closure = closure
        self.carries = carries
        self._replaced = frozenset(
            spec.name for spec in traced.graph.layers if spec.groups == 1 and spec.kind != "recurrent"
        )
        self._norms_stay = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in traced.model.modules())

    def order(self, group: ChannelGroup) -> list[int]:
        """The channels of a group from the first to be removed to the last."""
        return self.database.order(group)[0]

    def prune_error(self, group: ChannelGroup, keep: int) -> float:
        """Relative squared output error, summed over the group's consumers, of keeping `keep` channels."""
        gone = group.width - keep
        return self.database.order(group)[1][gone - 1] if gone > 0 else 0.0

    def apply(self, policy: Policy) -> nn.Module:
        """The compressed model of a policy, in eval mode, with floating-point tensors; it shares tensors with the database.

        The ranges of integer inputs are those of the dense model's activations; `finish` sets them anew.

        Raises:
            InputError: the policy names a target the model does not have, or keeps more channels than there are.
        """
        kept = self._kept(policy)
        gone = {(name, side): i for name, side, i in dropped(self.traced.graph.groups, kept)}
        integer = {n: as_run(s, reduce_range=self.reduce_range) for n, s in self.integer_layers(policy).items()}
        model = sharing_copy(self.traced.model)
        with torch.no_grad():
            remove_channels(model, self.traced.graph.groups, kept, self._replaced)
            for name in self.traced.graph.layer:
                choices = policy.get(name, LowRank), integer.get(name), policy.get(name, Sparsify)
                key = Key(name, tuple(gone.get((name, "in"), ())), *choices)
                self._replace(model, key, gone.get((name, "out"), []))
            if self._norms_stay and any(not isinstance(spec, Quantize) for _, spec in policy):
                recalibrate(model, self.range_batch)
            if kept and not self.pruning.compensate:
                lost = {name: indices for (name, side), indices in gone.items() if side == "out"}
                recalibrate_folded(model, self.traced.norms, lost, self.range_batch)
            set_ranges(model, [self.range_batch], only_unset=True)
        if self.carries and any(runs_on_integers(spec) for spec in integer.values()):
            self._carry(model)
        return model

    def _carry(self, model: nn.Module) -> None:
        """Round what stands between integer layers, by its ranges in the dense model."""
        carriers = Carriers(self._flow)
        carriers.plan(model)
        carriers.share(model)
        carriers.set_grids({key: self._range_between(key) for key in carriers.own})
        attach(model, carriers)

    def _range_between(self, key: str) -> tuple[float, float]:
        """The range of what a step puts out in the dense model, looked for once: every policy has the same."""
        if key not in self._ranges:
            self._ranges[key] = best_range(self._between[key])
        return self._ranges[key]

    @cached_property
    def _ranges(self) -> dict[str, tuple[float, float]]:
        return {}

    @cached_property
    def _flow(self) -> Flow:
        return read_flow(self.traced.model, tuple(tensor[:2] for tensor in self.range_batch))

    @cached_property
    def _between(self) -> dict[str, NDArray[np.float32]]:
        return dense_samples(self.traced.model, self._flow, self.range_batch)

    def refine(self, policy: Policy, batches: Sequence[tuple[Tensor, ...]]) -> nn.Module:
        """The model of a policy, its layers solved again one after the other on `batches` of inputs; shares nothing."""
        gone = {(name, side): i for name, side, i in dropped(self.traced.graph.groups, self._kept(policy))}
        layers = self.traced.graph.layers
        outputs = {layer.name: remaining(layer.out_channels, gone.get((layer.name, "out"), [])) for layer in layers}
        sparse = {name for name, spec in policy if isinstance(spec, Sparsify)}
        return self.finish(refine(self.apply(policy), self.traced, outputs, batches, sparse))

    def finished(self, policy: Policy) -> nn.Module:
        """The compressed model of a policy as it is handed over: `apply`, then `finish`.

        Raises:
            InputError: as `apply`.
        """
        return self.finish(self.apply(policy))

    def finish(self, model: nn.Module) -> nn.Module:
        """A copy of a stitched model that shares nothing, with the ranges of its integer inputs set by what it sees itself."""
        finished = copy.deepcopy(model)
        set_ranges(finished, [self.range_batch])
        return finished

    def integer_layers(self, policy: Policy) -> dict[str, Quantize]:
        """The layers that run rounded: those that the policy names, and those that the runtime adds to them."""
        named = {name: spec for name, spec in policy if isinstance(spec, Quantize)}
        integer = frozenset(name for name, spec in named.items() if runs_on_integers(spec))
        added = self.closure(integer) - integer if integer and self.closure else frozenset()
        return {
            **named,
            **{name: between_integers(named.get(name)) for name in self.traced.graph.layer if name in added},
        }

    def explicit(self, policy: Policy) -> Policy:
        """The policy with every layer that runs rounded named: policies that lead to the same model become the same."""
        return Policy.of([*(c for c in policy if not isinstance(c[1], Quantize)), *self.integer_layers(policy).items()])

    def _kept(self, policy: Policy) -> dict[str, tuple[int, ...]]:
        kept = {}
        for name, spec in policy:
            known = self.traced.graph.group if isinstance(spec, Prune) else self.traced.graph.layer
            if name not in known:
                raise InputError(f"The policy names {name!r}, which this model does not offer.", remedy=_CHECK)
            if isinstance(spec, Prune):
                group = self.traced.graph.group[name]
                if not 1 <= spec.keep <= group.width:
                    raise InputError(f"{name!r} has {group.width} channels; the policy keeps {spec.keep}.")
                kept[name] = tuple(sorted(self.order(group)[group.width - spec.keep :]))
        return kept

    def _replace(self, model: nn.Module, key: Key, outputs: Sequence[int]) -> None:
        """Put the variant of a layer in its place, without the outputs that are gone."""
        spec = self.traced.graph.layer[key.layer]
        if spec.kind == "recurrent":
            if key.low_rank or key.quantize:
                model.set_submodule(key.layer, sharing_copy(self.database.variant(key)))
        elif spec.groups > 1:
            if key.quantize is not None:
                model.set_submodule(key.layer, self._rounded(model.get_submodule(key.layer), key.quantize))
        elif outputs or key != Key(key.layer):
            variant = self.database.variant(key)
            cut = take_outputs(variant, remaining(spec.out_channels, outputs)) if outputs else sharing_copy(variant)
            model.set_submodule(key.layer, cut)

    def _rounded(self, layer: nn.Module, spec: Quantize) -> nn.Module:
        """A grouped layer is rounded as it stands: its few taps per channel have no database."""
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        return Quantized(layer, spec).eval()
