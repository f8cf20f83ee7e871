"""What a small policy still spends its time on: why a budget cannot be reached."""

from __future__ import annotations

import numpy as np

from automc.policy import Policy

from .predictor import LearnedPredictor

__all__ = ["bottleneck"]

_SHOWN = 3


def bottleneck(predictor: LearnedPredictor, policy: Policy) -> str:
    """One sentence: the layers that take most of the policy's predicted latency, and the share spent between layers.

    Raises:
        InputError: the policy is not in the predictor's space.
    """
    setting = predictor.model.setting
    priced = predictor.model.price(setting.space.encode([policy]))
    layers_s, latency_s = priced.layers_s[0], float(priced.latency_s[0])
    slowest = np.argsort(-layers_s, kind="stable")[:_SHOWN]
    named = ", ".join(f"{setting.graph.priced[i].name} {_percent(layers_s[i] / latency_s)}" for i in slowest)
    between = max(0.0, 1.0 - float(layers_s.sum()) / latency_s)
    return f"Of its time as predicted, most is in {named}; {_percent(between)} is between layers."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
