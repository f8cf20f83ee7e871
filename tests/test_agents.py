"""Every built-in agent keeps the contract; the baselines are what they say."""

from __future__ import annotations

from automc.agents.amc import amc
from automc.agents.auto import auto
from automc.agents.cmaes import cmaes
from automc.agents.evolution import Evolution
from automc.agents.gp import GaussianProcess
from automc.agents.greedy_sensitivity import GreedySensitivity
from automc.agents.haq import haq
from automc.agents.ilp import ILP
from automc.agents.netadapt import NetAdapt
from automc.agents.nsga2 import nsga2
from automc.agents.random import Random
from automc.agents.spdy import SPDY
from automc.agents.tpe import tpe
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
        return tpe(problem, seed)


class TestNSGA2(AgentContract):
    def make(self, problem: Problem, seed: int) -> Agent:
        return nsga2(problem, seed)


class TestCMAES(AgentContract):
    def make(self, problem: Problem, seed: int) -> Agent:
        return cmaes(problem, seed)


class TestEvolution(AgentContract):
    def make(self, problem: Problem, seed: int) -> Agent:
        return Evolution(problem, seed)


class TestGaussianProcess(AgentContract):
    def make(self, problem: Problem, seed: int) -> Agent:
        return GaussianProcess(problem, seed)


class TestGreedySensitivity(AgentContract):
    def make(self, problem: Problem, seed: int) -> Agent:
        return GreedySensitivity(problem, seed)


class TestSPDY(AgentContract):
    def make(self, problem: Problem, seed: int) -> Agent:
        return SPDY(problem, seed)


class TestAMC(AgentContract):
    def make(self, problem: Problem, seed: int) -> Agent:
        return amc(problem, seed)


class TestHAQ(AgentContract):
    def make(self, problem: Problem, seed: int) -> Agent:
        return haq(problem, seed)


class TestAuto(AgentContract):
    def make(self, problem: Problem, seed: int) -> Agent:
        return auto(problem, seed)
