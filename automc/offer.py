"""What a search would have to work with: the layers that can be compressed, the choices of each, and what is left alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from automc import registry
from automc.devices.device import Capabilities, Device
from automc.errors import AutomcError, InputError, PluginError
from automc.graph import LayerGraph
from automc.policy import Prune
from automc.space import SearchSpace
from automc.tracing.trace import Traced, trace

__all__ = ["Offer", "offer"]


@dataclass(frozen=True)
class Offer:
    """A model's layers and the search space over them, on one device."""

    traced: Traced
    space: SearchSpace

    @property
    def graph(self) -> LayerGraph:
        """The model's layers and channel groups, and what is left alone."""
        return self.traced.graph

    def targets(self, knob: str) -> int:
        """How many layers or channel groups have this knob."""
        return len(self.space.columns(knob))

    def choices(self, knob: str) -> int:
        """How many choices besides dense they have, in all."""
        return sum(len(self.space.domains[column]) - 1 for column in self.space.columns(knob))


def offer(
    model: nn.Module, example: Sequence[Tensor], device: Device, *, space: str = "default", names: Sequence[str] = ()
) -> Offer:
    """Trace the model on `example`, inputs (batch, ...), and open the search space of that name for the device.

    Args:
        names: the keywords that the model takes its inputs by, none where it takes them in order.

    Raises:
        InputError: the model cannot be run on the example, or the space offers nothing for it.
        PluginError: the space or the device raised, or gave what no search can use.
        UnknownNameError: no search space of that name.
    """
    traced = trace(model, example, names)
    can = _capabilities(device)
    options = {"channel_block": can.channel_block, "int8": can.int8, "sparsity": can.sparsity, "bits": can.bits}
    found = _built(space, traced.graph, options)
    if not len(found):
        raise InputError(
            f"Nothing in the model can be chosen in the search space {space!r}.",
            remedy="Take another --space; `automc check` says what that one offers.",
        )
    return Offer(traced, found)


def _built(name: str, graph: LayerGraph, options: Mapping[str, Any]) -> SearchSpace:
    build = registry.load("space", name)
    try:
        found: object = build(graph, **_understood(build, options))
    except AutomcError:
        raise
    except Exception as error:  # a space may be anybody's
        raise PluginError.of(
            f"The search space {name!r} failed", error, "`automc --debug ...` shows where; --space takes another."
        ) from error
    fault = _fault(found, graph)
    if fault or not isinstance(found, SearchSpace):
        raise PluginError(f"The search space {name!r} {fault}.", remedy="Mend it, or take another --space.")
    return found


def _fault(found: object, graph: LayerGraph) -> str:
    """What is wrong with what a space was made to be, as the end of a sentence; "" where nothing is."""
    if not isinstance(found, SearchSpace):
        return f"gave a {type(found).__name__}, which is no SearchSpace"
    for domain in found.domains:
        known: Container[str] = graph.group if domain.knob == Prune.knob else graph.layer
        if domain.target not in known:
            return f"offers {domain.knob} of {domain.target!r}, which this model does not have"
        for spec in domain.choices:
            if isinstance(spec, Prune) and not 1 <= spec.keep <= graph.widths[domain.target]:
                return f"keeps {spec.keep} channels of {domain.target!r}, which has {graph.widths[domain.target]}"
    return ""


def _capabilities(device: Device) -> Capabilities:
    try:
        can: object = device.capabilities()
    except AutomcError:
        raise
    except Exception as error:  # a device may be anybody's
        raise PluginError.of(
            f"The device {device.name!r} failed when it was asked what it can do",
            error,
            "`automc --debug ...` shows where; --device takes another.",
        ) from error
    if not isinstance(can, Capabilities):
        raise PluginError(
            f"The device {device.name!r} says what it can do by a {type(can).__name__}, not by Capabilities.",
            remedy="Mend it, or take another --device.",
        )
    return can


def _understood(build: Callable[..., SearchSpace], options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `options` that a space has parameters for."""
    parameters = inspect.signature(build).parameters
    return {name: value for name, value in options.items() if name in parameters}
