"""Choices that cannot pay are taken out of a space before agents see it, while the predictor keeps its own codes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from automc.budget import Budget
from automc.policy import LowRank
from automc.protocols import Observer, Predictor
from automc.space import Codes, Domain, SearchSpace

__all__ = ["Narrowing", "narrow"]


@dataclass(frozen=True)
class Narrowing:
    """How codes of a narrow space read in the wide space that it was cut from.

    Attributes:
        narrow: the space of the codes to read.
        columns: (narrow domains,) the wide space's column of each domain; columns of domains that are gone stay dense.
        codes: per narrow domain (choices,) the wide space's code of each choice.
        domains: how many the wide space has.
    """

    narrow: SearchSpace
    columns: tuple[int, ...]
    codes: tuple[Codes, ...]
    domains: int

    @classmethod
    def of(cls, narrow: SearchSpace, wide: SearchSpace) -> Narrowing:
        """The narrowing from `wide` to `narrow`.

        Raises:
            ValueError: `narrow` has a domain or a choice that `wide` lacks.
        """
        columns, codes = [], []
        for domain in narrow.domains:
            column = wide.column(domain.target, domain.knob)
            if column is None or not set(domain.choices) <= set(wide.domains[column].choices):
                raise ValueError(f"the wide space lacks choices of {domain.knob} of {domain.target!r}")
            columns.append(column)
            choices = wide.domains[column].choices
            codes.append(np.array([choices.index(choice) for choice in domain.choices], dtype=np.int64))
        return cls(narrow, tuple(columns), tuple(codes), len(wide))

    def widen(self, codes: Codes) -> Codes:
        """(count, wide domains) codes of the policies that (count, narrow domains) `codes` mean.

        Raises:
            InputError: codes that the narrow space does not have.
        """
        rows = self.narrow.check(codes)
        wide = np.zeros((len(rows), self.domains), dtype=np.int64)
        if self.columns:
            wide[:, self.columns] = np.concatenate(self.codes)[rows + self._first]
        return wide

    @cached_property
    def _first(self) -> Codes:
        """(narrow domains,) where the codes of each domain begin."""
        sizes = self.narrow.cardinalities
        return np.cumsum(sizes) - sizes


def narrow(space: SearchSpace, predictor: Predictor, budget: Budget | None, observer: Observer) -> SearchSpace:
    """The space without the factorisations that, each alone, are predicted to gain nothing that the budget is about.

    One has to be faster than the dense model, or smaller (of fewer MACs) where the budget limits size (MACs). Domains that are left without
    a choice go. What was dropped is said to the observer.
    """
    useful = _useful(space, predictor, budget)
    domains, dropped = [], 0
    for domain, gains in zip(space.domains, useful, strict=True):
        kept = [spec for spec, gain in zip(domain.choices, gains, strict=True) if gain or domain.knob != LowRank.knob]
        dropped += len(domain) - len(kept)
        if len(kept) > 1 or len(domain) == 1:
            domains.append(Domain(domain.target, domain.knob, tuple(kept)))
    if dropped:
        total = sum(len(space.domains[column]) - 1 for column in space.columns(LowRank.knob))
        observer.message(f"{dropped} of {total} factorisations are predicted to gain nothing and are not offered.")
    return SearchSpace(tuple(domains))


def _useful(space: SearchSpace, predictor: Predictor, budget: Budget | None) -> list[NDArray[np.bool_]]:
    """Per domain (choices,) whether the choice alone lowers the latency, or another metric that is limited; dense does."""
    costs = predictor.predict(_single_choices(space))
    gains = np.zeros(len(costs), dtype=np.bool_)
    for metric in {"latency_s", *(budget.metrics if budget else ())}:
        values = costs.array(metric, upper=False)
        gains |= values < values[0]
    gains[0] = True
    ends = np.cumsum(space.cardinalities - 1)
    parts = np.split(gains[1:], ends[:-1]) if len(ends) else []
    return [np.concatenate([gains[:1], part]) for part in parts]


def _single_choices(space: SearchSpace) -> Codes:
    """(1 + all choices, domains) codes: dense, then each choice alone, domain by domain."""
    rows = [space.dense]
    for column, domain in enumerate(space.domains):
        for code in range(1, len(domain)):
            row = space.dense
            row[column] = code
            rows.append(row)
    return np.stack(rows)
