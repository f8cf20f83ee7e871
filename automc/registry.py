"""Names to plug-ins: a built-in table plus entry points, resolved when asked for, so that nothing heavy is imported early.

A package adds an agent by declaring, in its own pyproject.toml,

    [project.entry-points."automc.agents"]
    my-agent = "my_package.my_agent:MyAgent"
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from automc.errors import AutomcError, PluginError, UnknownNameError

__all__ = ["load", "names"]

_BUILT_IN: dict[str, dict[str, str]] = {
    "agent": {
        "amc": "automc.agents.amc:amc",
        "amc-sac": "automc.agents.amc:amc_sac",
        "amc-td3": "automc.agents.amc:amc_td3",
        "auto": "automc.agents.auto:auto",
        "cmaes": "automc.agents.cmaes:cmaes",
        "evolution": "automc.agents.evolution:Evolution",
        "gp": "automc.agents.gp:GaussianProcess",
        "greedy-sensitivity": "automc.agents.greedy_sensitivity:GreedySensitivity",
        "haq": "automc.agents.haq:haq",
        "haq-joint": "automc.agents.haq:haq_joint",
        "ilp": "automc.agents.ilp:ilp",
        "netadapt": "automc.agents.netadapt:NetAdapt",
        "nsga2": "automc.agents.nsga2:nsga2",
        "random": "automc.agents.random:Random",
        "spdy": "automc.agents.spdy:SPDY",
        "tpe": "automc.agents.tpe:tpe",
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
        "bitfusion": "automc.devices.bitfusion:bitfusion",
        "cpu": "automc.devices.cpu:Cpu",
        "eyeriss": "automc.devices.eyeriss:eyeriss",
        "openvino": "automc.devices.openvino:OpenVino",
        "torch": "automc.devices.torch:eager",
        "torch-compile": "automc.devices.torch:compiled",
        "torch-compile-cuda": "automc.devices.torch_cuda:compiled",
        "torch-compile-cuda-bf16": "automc.devices.torch_cuda:compiled_bf16",
        "torch-compile-cuda-fp16": "automc.devices.torch_cuda:compiled_fp16",
        "torch-cuda": "automc.devices.torch_cuda:eager",
        "torch-cuda-bf16": "automc.devices.torch_cuda:eager_bf16",
        "torch-cuda-fp16": "automc.devices.torch_cuda:eager_fp16",
    },
    "figures": {
        "app": "automc.dashboards.app:PATH",
        "lines": "automc.dashboards.lines:lines_svg",
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
        PluginError: what an installed package registered cannot be imported.
    """
    for point in _points(kind):
        if point.name == name:
            return _loaded(kind, point)
    target = _BUILT_IN[kind].get(name)
    if target is None:
        raise UnknownNameError(kind, name, names(kind))
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def _loaded(kind: str, point: Any) -> Any:
    try:
        return point.load()
    except AutomcError:
        raise
    except Exception as error:  # importing runs whatever the package holds
        package = f" of the package {point.dist.name}" if point.dist else ""
        raise PluginError.of(
            f"The {kind} {point.name!r}{package} cannot be loaded",
            error,
            f"Install it again, or choose another {kind}.",
        ) from error


def _points(kind: str) -> Any:
    return entry_points(group=_ENTRY_POINT_GROUP[kind]) if kind in _ENTRY_POINT_GROUP else ()
