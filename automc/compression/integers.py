"""Which tensors of a flow are 8-bit codes, given the layers that integer kernels run, and which of them share a grid. No tensors."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from automc.compression.flow import Flow, Step

__all__ = ["Chain", "integer_chain"]


@dataclass
class Chain:
    """What is rounded between layers.

    Attributes:
        read_by: step -> the layer to whose input grid its results are rounded.
        like: step -> the step, itself or another, with whose results its own share a grid that no layer has.
        shared: layer -> the layer whose grid its input has as well.
        covered: layers whose inputs are on their grid already.
    """

    read_by: dict[str, str] = field(default_factory=dict)
    like: dict[str, str] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    covered: set[str] = field(default_factory=set)


def integer_chain(flow: Flow, reading: Collection[str], writing: Collection[str], products: Collection[str]) -> Chain:
    """The chain between the layers that read integers and those that write them.

    A step carries integers when it has an integer kernel and all that it reads are integers: what an integer layer reads or writes, or
    another carrier writes. Left in floating point are what a matrix product writes that no carrier or integer layer reads; what an
    activation alone reads, which the runtime fuses with the step before; and what integer layers alone read of a step without
    an integer kernel, as they round it themselves.

    Args:
        reading, writing: layers whose first (last) factor is integer.
        products: layers that are matrix products.
    """
    maker = {number: step for step in flow.steps for number in step.writes}
    readers: dict[int, list[Step]] = {number: [] for number in maker}
    for step in flow.steps:
        for number in step.reads:
            readers.setdefault(number, []).append(step)
    integer = {n for s in flow.steps if s.kind == "layer" and s.key in reading for n in s.reads if n in maker}
    integer |= {n for s in flow.steps if s.kind == "layer" and s.key in writing for n in s.writes}
    carriers = set()
    for step in flow.steps:
        if step.kind in ("keep", "mix", "activation") and integer.issuperset(step.reads):
            carriers.add(step.key)
            integer.update(step.writes)

    def is_rounded(number: int) -> bool:
        step, reads = maker[number], readers[number]
        takers = [r for r in reads if r.key in carriers or (r.kind == "layer" and r.key in reading)]
        if step.kind == "layer" and step.key in writing:
            if step.key in products and not takers:
                return False
        elif step.key not in carriers and not any(reader.key in carriers for reader in reads):
            return False
        return not (len(reads) == 1 and reads[0].kind == "activation" and reads[0].key in carriers)

    chosen = [n for step in flow.steps for n in step.writes if n in integer and is_rounded(n)]
    return _with_grids(flow, chosen, maker, carriers, reading)


def _with_grids(
    flow: Flow, chosen: list[int], maker: dict[int, Step], carriers: Collection[str], reading: Collection[str]
) -> Chain:
    root: dict[int, int] = {}

    def find(number: int) -> int:
        while root.get(number, number) != number:
            number = root[number]
        return number

    for step in flow.steps:
        if step.kind == "keep" and step.key in carriers:
            for number in (*step.reads, *step.writes):
                root[find(number)] = find(step.reads[0])
    chain, first, other = Chain(), dict[int, str](), dict[int, str]()
    for step in flow.steps:
        if step.kind == "layer" and step.key in reading:
            source = first.setdefault(find(step.reads[0]), step.key)
            if source != step.key:
                chain.shared[step.key] = source
            if step.reads[0] in chosen:
                chain.covered.add(step.key)
    for number in chosen:
        key, where = maker[number].key, find(number)
        if where in first:
            chain.read_by[key] = first[where]
        else:
            chain.like[key] = other.setdefault(where, key)
    return chain
