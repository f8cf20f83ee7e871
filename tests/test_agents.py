"""Every built-in agent keeps the contract; the baselines are what they say."""

from __future__ import annotations

from automc.agents.ilp import ILP
from automc.agents.netadapt import NetAdapt
from automc.agents.random import Random
from automc.agents.tpe import TPE
from automc.agents.uniform import Uniform
from automc.protocols import Agent, Problem
from automc.testing import AgentContract


class TestILP(AgentContract):
    def make(self, problem: Problem, seed: int) -> Agent:
        return ILP(problem, seed)


class TestRandom(AgentContract):
    def make(self, problem: Problem, seed: int) -> Agent:
        return Random(problem, seed)


class TestUniform(AgentContract):
    def make(self, problem: Problem, seed: int) -> Agent:
        return Uniform(problem, seed)


class TestNetAdapt(AgentContract):
    def make(self, problem: Problem, seed: int) -> Agent:
        return NetAdapt(problem, seed)


class TestTPE(AgentContract):
    def make(self, problem: Problem, seed: int) -> Agent:
        return TPE(problem, seed)
