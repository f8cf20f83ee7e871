"""What plug-in authors test with: contracts to inherit and a toy problem that needs neither a model nor a device."""

from __future__ import annotations

from automc.testing.agents import AgentContract
from automc.testing.fakes import Toy, ToyEvaluator, ToyPredictor, brute_force, drive, large_toy, small_toy, toy_problem

__all__ = [
    "AgentContract",
    "Toy",
    "ToyEvaluator",
    "ToyPredictor",
    "brute_force",
    "drive",
    "large_toy",
    "small_toy",
    "toy_problem",
]
