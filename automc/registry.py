"""Names to plug-ins: a built-in table plus entry points, resolved when asked for, so that nothing heavy is imported early.

A package adds an agent by declaring, in its own pyproject.toml,

    [project.entry-points."automc.agents"]
    my-agent = "my_package.my_agent:MyAgent"
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from automc.errors import UnknownNameError

__all__ = ["load", "names"]

_BUILT_IN: dict[str, dict[str, str]] = {
    "agent": {
        "ilp": "automc.agents.ilp:ILP",
        "netadapt": "automc.agents.netadapt:NetAdapt",
        "random": "automc.agents.random:Random",
        "tpe": "automc.agents.tpe:TPE",
        "uniform": "automc.agents.uniform:Uniform",
    },
    "space": {
        "default": "automc.search_spaces.default:default",
        "low_rank": "automc.search_spaces.low_rank:low_rank",
        "mixed": "automc.search_spaces.quantize:mixed",
        "prune": "automc.search_spaces.prune:prune",
        "quantize": "automc.search_spaces.quantize:quantize",
        "sparse": "automc.search_spaces.sparsify:sparse",
        "tensor": "automc.search_spaces.low_rank:tensor",
    },
    "device": {
        "cpu": "automc.devices.cpu:Cpu",
    },
    "figures": {
        "app": "automc.dashboards.app:PATH",
        "plotly": "automc.dashboards.report:PLOTLY",
    },
}
_ENTRY_POINT_GROUP = {"agent": "automc.agents", "space": "automc.search_spaces", "device": "automc.devices"}


def names(kind: str) -> list[str]:
    """The names registered for "agent", "space" or "device", built-in and installed, sorted."""
    return sorted({*_BUILT_IN[kind], *(point.name for point in _points(kind))})


def load(kind: str, name: str) -> Any:
    """The object registered for `kind` under `name`; an installed entry point overrides a built-in of the same name.

    Raises:
        UnknownNameError: nothing is registered under that name; carries the closest match.
    """
    for point in _points(kind):
        if point.name == name:
            return point.load()
    target = _BUILT_IN[kind].get(name)
    if target is None:
        raise UnknownNameError(kind, name, names(kind))
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def _points(kind: str) -> Any:
    return entry_points(group=_ENTRY_POINT_GROUP[kind]) if kind in _ENTRY_POINT_GROUP else ()
