"""Domain and SearchSpace: the allowed choices, and the integer codes that agents work on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from automc.errors import InputError
from automc.policy import Policy, Spec

__all__ = ["Codes", "Domain", "SearchSpace", "summed"]

Codes = NDArray[np.int64]
"""Integer codes of policies: (count, domains), entry (i, d) the index of policy i's choice in domain d."""


@dataclass(frozen=True)
class Domain:
    """The choices of one knob of one target, from dense (always first, None) to most compressed."""

    target: str
    knob: str
    choices: tuple[Spec | None, ...]

    def __post_init__(self) -> None:
        if not self.choices or self.choices[0] is not None:
            raise ValueError(f"the first choice of {self.knob} of {self.target!r} must be None (dense)")
        wrong = [spec for spec in self.choices[1:] if spec is None or spec.knob != self.knob]
        if wrong or len(set(self.choices)) != len(self.choices):
            raise ValueError(f"the choices of {self.knob} of {self.target!r} repeat or mix knobs: {self.choices}")

    def __len__(self) -> int:
        return len(self.choices)

    @property
    def labels(self) -> tuple[str, ...]:
        """One short label per choice, "dense" first."""
        return tuple("dense" if spec is None else spec.label for spec in self.choices)


@dataclass(frozen=True)
class SearchSpace:
    """The product of its domains. A policy of the space is a row of integer codes; code 0 is dense in every domain."""

    domains: tuple[Domain, ...]

    def __post_init__(self) -> None:
        keys = [(domain.target, domain.knob) for domain in self.domains]
        if len(set(keys)) != len(keys):
            raise ValueError("two domains share a target and a knob")

    def __len__(self) -> int:
        return len(self.domains)

    @cached_property
    def cardinalities(self) -> NDArray[np.int64]:
        """(domains,) number of choices of each domain."""
        return np.array([len(domain) for domain in self.domains], dtype=np.int64)

    @property
    def size(self) -> float:
        """Number of policies, as a float because it is astronomical."""
        return float(np.prod(self.cardinalities.astype(float))) if len(self) else 1.0

    @property
    def dense(self) -> Codes:
        """(domains,) the code of the dense model."""
        return np.zeros(len(self), dtype=np.int64)

    def encode(self, policies: Iterable[Policy]) -> Codes:
        """(count, domains) codes of `policies`.

        Raises:
            InputError: a policy names a target, knob or choice that the space does not offer.
        """
        rows = [self._encode_one(policy) for policy in policies]
        return np.array(rows, dtype=np.int64).reshape(len(rows), len(self))

    def decode(self, codes: ArrayLike) -> list[Policy]:
        """The policies of (count, domains) codes.

        Raises:
            InputError: wrong number of domains, or a code outside its domain.
        """
        rows = self.check(codes)
        return [
            Policy.of(
                (domain.target, spec)
                for domain, code in zip(self.domains, row, strict=True)
                if (spec := domain.choices[code]) is not None
            )
            for row in rows.tolist()
        ]

    def check(self, codes: ArrayLike) -> Codes:
        """(count, domains) `codes` as integers, validated.

        Raises:
            InputError: wrong number of domains, not whole numbers, or a code outside its domain.
        """
        rows = np.asarray(codes)
        if rows.ndim != 2 or rows.shape[1] != len(self):
            raise InputError(f"Expected codes of shape (count, {len(self)}), got {rows.shape}.")
        if not np.issubdtype(rows.dtype, np.integer):
            raise InputError(f"Codes must be integers, got {rows.dtype}.")
        outside = (rows < 0) | (rows >= self.cardinalities)
        if outside.any():
            row, column = np.argwhere(outside)[0]
            domain = self.domains[column]
            raise InputError(
                f"Code {rows[row, column]} is outside the {len(domain)} choices of {domain.knob} of {domain.target!r}."
            )
        return rows.astype(np.int64, copy=False)

    def contains(self, policy: Policy) -> bool:
        """Whether the space offers every choice of `policy`."""
        return all(spec in self._codes.get((target, spec.knob), {}) for target, spec in policy)

    def sample(self, count: int, rng: np.random.Generator) -> Codes:
        """(count, domains) codes drawn uniformly and independently in every domain."""
        return rng.integers(0, self.cardinalities, size=(count, len(self)), dtype=np.int64)

    def restricted(self, policy: Policy) -> Policy:
        """`policy` without the choices that the space does not offer."""
        return Policy.of((target, spec) for target, spec in policy if spec in self.choices(target, spec.knob))

    def column(self, target: str, knob: str) -> int | None:
        """The index of the domain of a target's knob; None where the space has none."""
        return self._column.get((target, knob))

    def choices(self, target: str, knob: str) -> tuple[Spec | None, ...]:
        """The choices of a target's knob, dense alone where the space has none."""
        column = self.column(target, knob)
        return (None,) if column is None else self.domains[column].choices

    def columns(self, knob: str) -> list[int]:
        """The indices of the domains of one knob."""
        return [i for i, domain in enumerate(self.domains) if domain.knob == knob]

    @cached_property
    def _codes(self) -> dict[tuple[str, str], dict[Spec | None, int]]:
        return {(d.target, d.knob): {spec: i for i, spec in enumerate(d.choices)} for d in self.domains}

    @cached_property
    def _column(self) -> dict[tuple[str, str], int]:
        return {(domain.target, domain.knob): i for i, domain in enumerate(self.domains)}

    def _encode_one(self, policy: Policy) -> Sequence[int]:
        row = [0] * len(self)
        for target, spec in policy:
            code = self._codes.get((target, spec.knob), {}).get(spec)
            if code is None:
                raise InputError(
                    f"{spec} of {target!r} is not in the search space.",
                    remedy="`automc check` lists what the space offers.",
                )
            row[self._column[target, spec.knob]] = code
        return row


def summed(losses: Sequence[ArrayLike], codes: ArrayLike) -> NDArray[np.float64]:
    """(...,) what the choices of (..., domains) codes lose, each alone, summed; `losses` are per domain (choices,)."""
    rows = np.asarray(codes)
    total = np.zeros(rows.shape[:-1])
    for loss, chosen in zip(losses, np.moveaxis(rows, -1, 0), strict=True):
        total = total + np.asarray(loss)[chosen]
    return total
