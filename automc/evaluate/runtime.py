"""Candidates in the runtime that they are deployed to: its kernels score them up to twice as fast as PyTorch does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from automc.devices.cpu import OrtSession
from automc.export.template import Template
from automc.policy import Policy

__all__ = ["Builder", "Running", "Runtime", "StandIn", "leaves"]


class Builder(Protocol):
    """Makes what a score function is given: the stitcher itself, or a `Runtime` around it."""

    def apply(self, policy: Policy) -> nn.Module:
        """The model of a policy, ready to run."""
        ...


class StandIn(nn.Module):
    """Runs elsewhere what is scored, as a module in evaluation mode. Outputs come back to where the inputs are.

    It has one empty parameter: score functions ask the first one for the device and the type to give inputs in.
    """

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)
        self.eval()


class Running(StandIn):
    """An ONNX model as a module, for any number of samples; several outputs come as a tuple."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # The runtime would round weights between integer tensors once more, which a simulation must not.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self.session = OrtSession(proto.SerializeToString(), options)

    def forward(self, *inputs: Tensor) -> Any:
        arrays = self.session.run(*(t.cpu().numpy() for t in inputs))
        outputs = tuple(torch.from_numpy(array).to(inputs[0].device) for array in arrays)
        return outputs[0] if len(outputs) == 1 else outputs


class Runtime:
    """Builds candidates in ONNX Runtime from one template, and in PyTorch where the template does not serve.

    Attributes:
        refused: targets of policies that the template does not serve: their channels pass through numbers that the exporter
            wrote into the graph.
    """

    def __init__(self, stitcher: Builder, template: Template, refused: frozenset[str] = frozenset()) -> None:
        self.stitcher = stitcher
        self.template = template
        self.refused = refused

    def apply(self, policy: Policy) -> nn.Module:
        """The candidate as a session, or as a PyTorch module where the policy names a refused target."""
        model = self.stitcher.apply(policy)
        if self.refused.intersection(target for target, _ in policy):
            return model
        return Running(self.template.stitch(model))


def leaves(outputs: Any) -> Sequence[Tensor]:
    """The tensors of what a model returns: one, or several in a tuple, list or dictionary."""
    if isinstance(outputs, Tensor):
        return (outputs,)
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return tuple(tensor for value in values for tensor in leaves(value))
