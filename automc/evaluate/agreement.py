"""Which policies a template serves: those whose ONNX model computes what their PyTorch model computes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from automc.compression.quantize import quantized_layers
from automc.evaluate.runtime import Builder, Running, leaves
from automc.export.template import Template
from automc.export.verify import FLOAT_TOLERANCE, INTEGER_TOLERANCE, relative_error
from automc.policy import Policy
from automc.space import SearchSpace

__all__ = ["agrees", "refused_targets"]

_POLICIES = 3


def agrees(template: Template, model: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Whether the template's version of `model` puts out what it does, for `inputs` and for the first of them alone."""
    tolerance = INTEGER_TOLERANCE if quantized_layers(model) else FLOAT_TOLERANCE
    try:
        session = Running(template.stitch(model))
        with torch.inference_mode():
            for batch in (inputs, [tensor[:1] for tensor in inputs]):
                pairs = zip(leaves(session(*batch)), leaves(model(*batch)), strict=True)
                if not all(relative_error(found, expected) <= tolerance for found, expected in pairs):
                    return False
    except Exception:  # a graph with numbers written into it may fail in any way; that it does is the answer
        return False
    return True


def refused_targets(
    template: Template, stitcher: Builder, space: SearchSpace, inputs: Sequence[Tensor], seed: int = 0
) -> frozenset[str] | None:
    """The targets whose compression the template cannot follow; None where it follows not even policies without them.

    Random policies are tried first. Where one disagrees, each of the targets of such policies is tried alone, at its middle
    and at its strongest choice.
    """
    rng = np.random.default_rng(seed)
    policies = space.decode(space.sample(_POLICIES, rng))
    wrong = [policy for policy in policies if not agrees(template, stitcher.apply(policy), inputs)]
    if not wrong:
        return frozenset()
    suspects = {target for policy in wrong for target, _ in policy}
    refused = frozenset(t for t in suspects if not all(_alone(template, stitcher, space, t, inputs)))
    rest = [_without(policy, refused) for policy in wrong]
    if not refused or not all(agrees(template, stitcher.apply(policy), inputs) for policy in rest):
        return None
    return refused


def _alone(
    template: Template, stitcher: Builder, space: SearchSpace, target: str, inputs: Sequence[Tensor]
) -> list[bool]:
    """Whether single choices of one target agree, two for each of its knobs."""
    specs = {
        domain.choices[code]
        for domain in space.domains
        if domain.target == target
        for code in {len(domain) // 2, len(domain) - 1} - {0}
    }
    policies = [Policy.of([(target, spec)]) for spec in specs if spec is not None]
    return [agrees(template, stitcher.apply(policy), inputs) for policy in policies]


def _without(policy: Policy, targets: frozenset[str]) -> Policy:
    return Policy.of((target, spec) for target, spec in policy if target not in targets)
