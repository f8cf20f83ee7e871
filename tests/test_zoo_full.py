"""Published models at full size: tracing alone, what is pruned, and what is said about the rest."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch
from torch import nn

from automc.graph import LayerGraph
from automc.tracing.trace import trace

pytestmark = pytest.mark.slow

TORCHVISION = {  # share of the MACs in layers that lose input or output channels, at least; a part of the reasons
    "resnet18": (0.99, ""),
    "resnet50": (0.99, ""),
    "resnext50_32x4d": (0.99, ""),
    "densenet121": (0.99, ""),
    "googlenet": (0.99, ""),
    "mobilenet_v2": (0.99, ""),
    "mobilenet_v3_small": (0.99, ""),
    "shufflenet_v2_x1_0": (0.9, "through a reshape, a split and a transpose"),
    "efficientnet_b0": (0.99, ""),
    "convnext_tiny": (0.9, "(LayerNorm) normalises them together"),
    "regnet_y_400mf": (0.99, ""),
}
TIMM = {
    "resnet26d": (0.99, ""),
    "mobilenetv4_conv_small": (0.99, ""),
    "repvgg_a0": (0.99, ""),
    "ghostnet_100": (0.5, ""),
    "convnextv2_atto": (0.0, ""),
}


def share_pruned(graph: LayerGraph) -> float:
    """Share of the MACs in layers whose input or output channels may go."""
    touched = [layer for layer in graph.layers if layer.inputs.parts or layer.outputs.parts]
    return sum(layer.macs for layer in touched) / graph.macs


def check(model: nn.Module, share: float, reason: str) -> None:
    graph = trace(model.eval(), (torch.randn(1, 3, 64, 64),)).graph
    assert share_pruned(graph) >= share
    assert any(reason in entry.reason for entry in graph.left_alone) or not reason


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_models_are_traced(name: str, torchvision: ModuleType) -> None:
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    torch.manual_seed(0)
    check(torchvision.models.get_model(name, weights=None, **options), *TORCHVISION[name])


@pytest.mark.parametrize("name", TIMM)
def test_timm_models_are_traced(name: str, torchvision: ModuleType) -> None:
    pytest.importorskip("timm")
    timm = importlib.import_module("timm")
    torch.manual_seed(0)
    check(timm.create_model(name, pretrained=False), *TIMM[name])
