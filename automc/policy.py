"""Policy: for each layer or channel group, the compression chosen. The datum that flows through everything."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from numbers import Integral
from typing import Any, ClassVar, Literal, TypeVar

from automc.errors import InputError

__all__ = ["SCHEMA_VERSION", "LowRank", "Policy", "Prune", "Quantize", "Spec", "Sparsify"]

SCHEMA_VERSION = 1


@dataclass(frozen=True, order=True)
class Spec:
    """One setting of one knob, as frozen data. `automc.compression.apply.Stitcher` applies it to a model."""

    knob: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """The fields, as plain JSON values."""
        return dataclasses.asdict(self)

    @property
    def label(self) -> str:
        """A few characters for tables: "keep 12", "w8a8", "svd 16"."""
        raise NotImplementedError


@dataclass(frozen=True, order=True)
class Prune(Spec):
    """Keep `keep` channels of a channel group (structured pruning). The target is a channel group."""

    knob: ClassVar[str] = "prune"
    keep: int

    @property
    def label(self) -> str:
        return f"keep {self.keep}"


@dataclass(frozen=True, order=True)
class LowRank(Spec):
    """Replace a layer by a product of smaller ones of rank `rank`. The target is a layer.

    `svd` splits a k x k convolution (or a linear layer) into k x k with `rank` outputs and 1 x 1; `spatial` into k x 1 and
    1 x k (Jaderberg et al. 2014, arXiv 1405.3866); `tucker` is Tucker-2: 1 x 1, k x k with `rank` channels on both sides,
    1 x 1 (Kim et al. 2016, arXiv 1511.06530); `cp` is 1 x 1, depthwise k x 1, depthwise 1 x k, 1 x 1 (Lebedev et al. 2015,
    arXiv 1412.6553); `tt` is the tensor train 1 x 1, k x 1, 1 x k, 1 x 1.
    """

    knob: ClassVar[str] = "low_rank"
    rank: int
    method: Literal["svd", "spatial", "tucker", "cp", "tt"] = "svd"

    @property
    def label(self) -> str:
        return f"{self.method} {self.rank}"


@dataclass(frozen=True, order=True)
class Sparsify(Spec):
    """Set weights to zero: the share `density` of them stays. The target is a layer.

    `pattern` is "unstructured", or "n:m" such as "2:4": n of every m weights along the input stay, and `density` is n / m.
    """

    knob: ClassVar[str] = "sparsify"
    density: float
    pattern: str = "unstructured"

    @property
    def label(self) -> str:
        return f"{100 * self.density:.0f} % left" if self.pattern == "unstructured" else self.pattern


@dataclass(frozen=True, order=True)
class Quantize(Spec):
    """Fewer bits for weights and activations. The target is a layer.

    Attributes:
        activation_bits: of the layer's input; 32 leaves it in floating point.
        group_size: input features that share a scale; 0 is one scale per output channel.
        symmetric: weight codes are symmetric around zero, without a zero point.
        codes: which values a weight may take: evenly spaced ones; {-s, s} ("binary", `weight_bits` 1); {-s, 0, s}
            ("ternary", `weight_bits` 2); 2^`weight_bits` values found by k-means and shared by the whole layer ("kmeans").
    """

    knob: ClassVar[str] = "quantize"
    weight_bits: int
    activation_bits: int
    group_size: int = 0
    symmetric: bool = True
    codes: Literal["uniform", "binary", "ternary", "kmeans"] = "uniform"

    @property
    def label(self) -> str:
        weights = f"w{self.weight_bits}" if self.codes == "uniform" else f"{self.codes} {self.weight_bits}"
        inputs = "" if self.activation_bits >= 32 else f"a{self.activation_bits}"
        group = f"/{self.group_size}" if self.group_size else ""
        size_only = " (size only)" if self.activation_bits >= 32 else ""
        return f"{weights}{group}{inputs}" + ("" if self.symmetric else " asymmetric") + size_only


_KNOBS: dict[str, type[Spec]] = {spec.knob: spec for spec in (Prune, LowRank, Sparsify, Quantize)}
"""The allow-list of specs that a policy file may hold, in the order in which they are applied to a layer."""

S = TypeVar("S", bound=Spec)


@dataclass(frozen=True)
class Policy:
    """The compression of a whole model: an ordered set of (target, spec) pairs, at most one spec per target and knob.

    What is not named stays dense, so `Policy()` is the dense model. Equal policies have equal digests whatever the order
    in which their choices were given.
    """

    choices: tuple[tuple[str, Spec], ...] = ()

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.choices, key=lambda choice: (choice[0], choice[1].knob)))
        keys = [(target, spec.knob) for target, spec in ordered]
        for first, second in pairwise(keys):
            if first == second:
                raise InputError(f"The policy names {first[1]} of {first[0]!r} twice.", remedy="Keep one of the two.")
        object.__setattr__(self, "choices", ordered)

    @classmethod
    def of(cls, choices: Iterable[tuple[str, Spec]]) -> Policy:
        """A policy from any iterable of (target, spec) pairs."""
        return cls(tuple(choices))

    def __iter__(self) -> Iterator[tuple[str, Spec]]:
        return iter(self.choices)

    def __len__(self) -> int:
        return len(self.choices)

    def get(self, target: str, kind: type[S]) -> S | None:
        """The spec of class `kind` chosen for `target`, or None where the target stays dense in that knob."""
        found = self._by_key.get((target, kind.knob))
        return found if isinstance(found, kind) else None

    @cached_property
    def _by_key(self) -> dict[tuple[str, str], Spec]:
        return {(target, spec.knob): spec for target, spec in self.choices}

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that identify the policy across runs and machines."""
        text = json.dumps(self.to_json()["choices"], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """{"schema": 1, "choices": {target: {knob: {field: value}}}}, plain JSON values."""
        choices: dict[str, dict[str, Any]] = {}
        for target, spec in self.choices:
            choices.setdefault(target, {})[spec.knob] = spec.to_json()
        return {"schema": SCHEMA_VERSION, "choices": choices}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Policy:
        """Read what `to_json` wrote. Only the specs of this file can appear: nothing in a policy file is executed.

        Raises:
            InputError: another schema version, an unknown knob, or fields or numbers that do not fit it.
        """
        if data.get("schema") != SCHEMA_VERSION:
            raise InputError(
                f"The policy has schema {data.get('schema')!r}; this version reads {SCHEMA_VERSION}.",
                remedy="Export it again with this version of automc.",
            )
        choices: list[tuple[str, Spec]] = []
        for target, knobs in data.get("choices", {}).items():
            for knob, fields in knobs.items():
                if knob not in _KNOBS:
                    raise InputError(
                        f"{target!r} has the unknown knob {knob!r}.", remedy=f"Known: {', '.join(_KNOBS)}."
                    )
                try:
                    choices.append((target, _KNOBS[knob](**_checked(fields))))
                except (TypeError, ValueError) as error:
                    raise InputError(f"The {knob} of {target!r} cannot be read: {error}.") from error
        return cls.of(choices)


_LEAST = {"keep": 1, "rank": 1, "weight_bits": 1, "activation_bits": 1, "group_size": 0}
"""The whole numbers among the fields of specs."""


def _checked(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a spec.

    Raises:
        ValueError: a count is not a whole number, or below the least that there is.
    """
    checked = dict(fields)
    for name, least in _LEAST.items():
        value = checked.get(name, least)
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} is {value!r}, not a whole number of {least} or more")
    return checked
