"""The database of layer variants: made once per model, calibration data and options, kept on disk, shared by searches.

Every entry is one layer under one combination of choices (`automc.compression.variants`); a policy's model is stitched from
them (SPDY, arXiv 2201.13096, section 3.3). Entries are made when they are first asked for, or all at once by `build`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from automc.calibrate import LayerStats
from automc.compression.criteria import SWEPT, Pruning, channel_order
from automc.compression.evidence import Evidence
from automc.compression.frozen import freeze, is_freezable, thaw
from automc.compression.obs import Consumer, elimination_order
from automc.compression.prune import reading_order
from automc.compression.recurrent import recurrent_variant
from automc.compression.variants import Dense, Key, before_last, covariance_of, make_variant
from automc.disk import write_atomic
from automc.errors import InputError
from automc.graph import ChannelGroup
from automc.policy import LowRank, Prune, Quantize, Sparsify
from automc.protocols import SILENT, Observer
from automc.space import SearchSpace
from automc.tracing.trace import Traced

__all__ = ["Database"]

_FORMAT = "4"
_MOST_PER_LAYER = 1024
"""Layers that read many channel groups have more combinations than this; theirs are made when first needed."""
Order = tuple[list[int], list[float]]


class Database:
    """Variants of the layers of one traced model.

    Args:
        stats: what each layer reads; only looked into when an entry has to be made.
        folder: where entries are kept, of one way of pruning alone; None keeps them in memory alone.
        pruning: which channels go first, and whether the layers that read them are refitted.
        evidence: what criteria other than "obs" look at.
    """

    def __init__(
        self,
        traced: Traced,
        stats: Mapping[str, LayerStats],
        folder: Path | None = None,
        pruning: Pruning | None = None,
        evidence: Evidence | None = None,
    ) -> None:
        self.traced = traced
        self.stats = stats
        self.pruning = pruning or Pruning()
        self.evidence = evidence
        self.folder = folder
        self._orders: dict[str, Order] = {}
        self._entries: dict[str, dict[str, nn.Module]] = {}
        self._dirty: set[str] = set()
        self._latest: Dense | None = None
        self._read_orders()

    def __getstate__(self) -> dict[str, Any]:
        """In another process the entries of a folder are read from there."""
        return self.__dict__ if self.folder is None else {**self.__dict__, "_entries": {}, "_dirty": set()}

    def order(self, group: ChannelGroup) -> Order:
        """The channels of a group from the first to go to the last, and the relative error after each removal."""
        if group.name not in self._orders:
            self._orders[group.name] = self._ranked(group)
            self._dirty.add("")
        return self._orders[group.name]

    def _ranked(self, group: ChannelGroup) -> Order:
        if self.pruning.criterion not in SWEPT:
            assert self.evidence is not None
            return channel_order(self.pruning, group, self.evidence)
        consumers = [c for c in (self._consumer(group, m.module) for m in group.members if m.side == "in") if c]
        return elimination_order(consumers, group.width) if consumers else reading_order(self.traced.model, group)

    def variant(self, key: Key) -> nn.Module:
        """The module of a key, with all its outputs; never to be changed in place."""
        entries = self._of_layer(key.layer)
        digest = _digest(key)
        if digest not in entries:
            with torch.no_grad():
                entries[digest] = self._made(key)
            self._dirty.add(key.layer)
        return entries[digest]

    def build(self, space: SearchSpace, observer: Observer = SILENT) -> int:
        """Make every entry that policies of `space` need, then save; how many there are."""
        plans = {name: list(self._keys(name, space)) for name in self.traced.graph.layer}
        observer.stage("build the database of layer variants", sum(len(keys) for keys in plans.values()))
        for name, keys in plans.items():
            for key in keys:
                self.variant(key)
                observer.advance(1.0, name)
        self._latest = None
        self.save()
        return sum(len(keys) for keys in plans.values())

    def save(self) -> None:
        """Write what is new to disk, one file per layer, each whole or not at all.

        Raises:
            DiskError: the folder cannot be written.
        """
        if self.folder is None:
            return
        for name in sorted(self._dirty - {""}):
            write_atomic(self._path(name), _packed(self._entries[name]))
        if "" in self._dirty:
            write_atomic(self.folder / "orders.json", json.dumps(self._orders))
        self._dirty.clear()

    def gone(self, group: ChannelGroup, keep: int) -> list[int]:
        """The channels of a group that go when `keep` stay."""
        return self.order(group)[0][: group.width - keep]

    def _made(self, key: Key) -> nn.Module:
        layer = self.traced.model.get_submodule(key.layer)
        if isinstance(layer, nn.RNNBase):
            return recurrent_variant(
                layer, key.low_rank, key.quantize, covariance_of(self.stats[key.layer], slice(None))
            )
        dense = self._dense(key.layer)
        before = before_last(key)
        return dense.module if before is None else make_variant(dense, key, self.variant(before))

    def _of_layer(self, name: str) -> dict[str, nn.Module]:
        if name not in self._entries:
            self._entries[name] = _unpacked(self._path(name)) if self.folder is not None else {}
        return self._entries[name]

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{quote(name, safe='')}.safetensors"

    def _dense(self, name: str) -> Dense:
        module = self.traced.model.get_submodule(name)
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        spec = self.traced.graph.layer[name]
        if self._latest is None or self._latest.spec.name != name:
            stats = self.stats.get(name) if spec.groups == 1 else None
            self._latest = Dense(spec, module, stats, self.pruning.compensate)
        return self._latest

    def _consumer(self, group: ChannelGroup, name: str) -> Consumer | None:
        spec = self.traced.graph.layer.get(name)
        stats = self.stats.get(name) if spec is not None and spec.groups == 1 else None
        if spec is None or stats is None:
            return None
        member = next(m for m in group.members if m.module == name and m.side == "in")
        taps = spec.kernel[0] * spec.kernel[1]
        channels = torch.tensor(member.index)  # (channels, times)
        blocks = (channels[:, :, None] * taps + torch.arange(taps)).flatten(1)
        return Consumer(self._dense(name).module.weight.detach().flatten(1), stats, blocks, self._importance(name))

    def _importance(self, name: str) -> Tensor | None:
        """(outputs,) of a layer, where the criterion weighs errors by it."""
        if self.pruning.criterion != "fisher":
            return None
        assert self.evidence is not None
        return self.evidence.sensitivity[name]

    def _keys(self, name: str, space: SearchSpace) -> Iterator[Key]:
        """The keys of a layer that policies of `space` can lead to, none where they are too many."""
        spec = self.traced.graph.layer[name]
        if spec.groups > 1:
            return
        pruned = [self._removals(name, group, space) for group, _ in spec.inputs.parts]
        knobs = [space.choices(name, kind.knob) for kind in (LowRank, Quantize, Sparsify)]
        count = math.prod(len(choices) for choices in knobs)
        for removals in pruned:
            count *= len(removals)
        if count > _MOST_PER_LAYER:
            return
        for combination in itertools.product(*pruned):
            gone = tuple(sorted(itertools.chain.from_iterable(combination)))
            for chosen in itertools.product(*knobs):
                if gone or any(chosen):
                    yield Key(name, gone, *chosen)  # type: ignore[arg-type]

    def _removals(self, name: str, group_name: str, space: SearchSpace) -> list[tuple[int, ...]]:
        """For each choice of a group, the input channels that layer `name` loses by it."""
        group = self.traced.graph.group[group_name]
        index = next(m.index for m in group.members if m.module == name and m.side == "in")
        keeps = [s.keep if isinstance(s, Prune) else group.width for s in space.choices(group_name, Prune.knob)]
        return [tuple(i for channel in self.gone(group, keep) for i in index[channel]) for keep in keeps]

    def _read_orders(self) -> None:
        path = None if self.folder is None else self.folder / "orders.json"
        if path is not None and path.exists():
            self._orders = {name: (order, errors) for name, (order, errors) in json.loads(path.read_text()).items()}


@lru_cache(maxsize=1 << 16)
def _digest(key: Key) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()[:16]


def _packed(entries: Mapping[str, nn.Module]) -> bytes:
    tensors: dict[str, Tensor] = {}
    structures: dict[str, Any] = {}
    for digest, module in entries.items():
        if is_freezable(module):
            structures[digest] = freeze(module)
            tensors.update({f"{digest}.{name}": t.contiguous().clone() for name, t in module.state_dict().items()})
    return save(tensors, {"format": _FORMAT, "entries": json.dumps(structures)})


def _unpacked(path: Path) -> dict[str, nn.Module]:
    """The entries of a file; none where it is missing, of another format, or damaged: they are then made anew."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("format") != _FORMAT:
                return {}
            structures = json.loads(file.metadata()["entries"])
            names: dict[str, list[str]] = {digest: [] for digest in structures}
            for name in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                names[name.partition(".")[0]].append(name)
            return {
                digest: thaw(structure, {n: file.get_tensor(n) for n in names[digest]}, f"{digest}.")
                for digest, structure in structures.items()
            }
    except (FileNotFoundError, safetensors.SafetensorError, InputError, KeyError, ValueError):
        return {}
