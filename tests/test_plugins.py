"""Agents, search spaces and devices of others: what breaks their contract is named, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from networks import images, make

from automc import registry
from automc.cli.main import main
from automc.devices.cpu import Cpu
from automc.devices.device import Capabilities
from automc.errors import InputError, PluginError
from automc.graph import LayerGraph
from automc.guard import Guarded
from automc.job import run
from automc.offer import offer
from automc.policy import Policy, Prune
from automc.predict.targets import open_device
from automc.protocols import Problem
from automc.space import Domain, SearchSpace
from automc.testing.agents import AgentContract
from automc.testing.fakes import small_toy
from automc.trial import Trial


class Broken:
    """Fails where it is told to."""

    fails = ""

    def __init__(self, problem: Problem, seed: int) -> None:
        self._fail("init")
        self.problem = problem

    def ask(self, count: int) -> Sequence[Policy]:
        self._fail("ask")
        if self.fails == "foreign":
            return [Policy.of([("nolayer", Prune(3))])]
        if self.fails == "none":
            return None  # type: ignore[return-value]
        if self.fails == "words":
            return ["a policy"]  # type: ignore[list-item]
        return self.problem.space.decode(self.problem.space.dense[None])

    def tell(self, trials: Sequence[Trial]) -> None:
        self._fail("tell")

    def _fail(self, where: str) -> None:
        if self.fails == where:
            raise ZeroDivisionError(f"{where} broke\nin two lines")


def broken_space(graph: object) -> SearchSpace:
    """One that cannot be built."""
    raise KeyError("no such layer")


def empty_space(graph: object) -> SearchSpace:
    """One without a choice."""
    return SearchSpace(())


def no_space(graph: object) -> None:
    """One that forgets to return."""


def foreign_space(graph: object) -> SearchSpace:
    """One of another model."""
    return SearchSpace((Domain("nolayer", "prune", (None, Prune(3))),))


def wide_space(graph: LayerGraph) -> SearchSpace:
    """One that keeps more channels than there are."""
    group = graph.groups[0]
    return SearchSpace((Domain(group.name, "prune", (None, Prune(group.width + 1))),))


def old_space(graph: LayerGraph, *, channel_block: int, int8: bool, levels: int = 8) -> SearchSpace:
    """One with parameters that it makes nothing of."""
    return SearchSpace((Domain(graph.groups[0].name, "prune", (None, Prune(channel_block))),))


class Blank(Cpu):
    """A device that does not say what it can do."""

    def capabilities(self) -> None:  # type: ignore[override]
        """Nothing."""


class Mute(Cpu):
    """A device that fails when it is asked."""

    def capabilities(self) -> Capabilities:
        raise OSError("no answer")


def no_device(threads: int) -> None:
    """One that forgets to return."""


def broken_device(threads: int) -> Cpu:
    """One that cannot be made."""
    raise RuntimeError("no board")


@pytest.fixture(autouse=True)
def _plugged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("automc.cli.main.silence_libraries", lambda: None)
    monkeypatch.setitem(registry._BUILT_IN["agent"], "broken", f"{__name__}:Broken")
    for kind, names in PLUGGED.items():
        for name, attribute in names.items():
            monkeypatch.setitem(registry._BUILT_IN[kind], name, f"{__name__}:{attribute}")


PLUGGED = {
    "space": {
        "broken": "broken_space",
        "empty": "empty_space",
        "none": "no_space",
        "foreign": "foreign_space",
        "wide": "wide_space",
        "old": "old_space",
    },
    "device": {"none": "no_device", "broken": "broken_device", "blank": "Blank", "mute": "Mute"},
}


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        ("init", "The agent 'broken' failed when it was made: ZeroDivisionError: init broke."),
        ("ask", "The agent 'broken' failed when it was asked: ZeroDivisionError: ask broke."),
        ("tell", "The agent 'broken' failed when it was told: ZeroDivisionError: tell broke."),
        ("none", "The agent 'broken' failed when it was asked: TypeError"),
        ("words", "The agent 'broken' asked for a str, which is no policy."),
        ("foreign", "The agent 'broken' asked for a policy that the search space does not have: .*'nolayer'"),
    ],
)
def test_an_agent_that_breaks_its_contract_is_named(fails: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broken, "fails", fails)
    problem = small_toy().problem

    def use() -> None:
        agent = Guarded.of("broken", lambda: Broken(problem, 0), problem.space)
        agent.ask(1)
        agent.tell([])

    with pytest.raises(PluginError, match=said):
        use()


def test_what_an_agent_raises_on_purpose_passes() -> None:
    def refuses() -> Broken:
        raise InputError("Not with this budget.")

    with pytest.raises(InputError, match="Not with this budget"):
        Guarded.of("refusing", refuses, small_toy().problem.space)


def test_the_contract_names_what_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broken, "fails", "foreign")

    class Tests(AgentContract):
        def make(self, problem: Problem, seed: int) -> Broken:
            return Broken(problem, seed)

    with pytest.raises(AssertionError, match=r"Broken asked for policies that the space does not have: .*nolayer"):
        Tests().test_asks_policies_of_the_space_and_never_more_than_wanted()


def test_a_search_names_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broken, "fails", "foreign")
    with pytest.raises(PluginError, match="The agent 'broken' asked"):
        run(tiny_run.job(tmp_path, agent="broken", device="eyeriss"))


@pytest.mark.parametrize(
    ("space", "error", "said"),
    [
        ("broken", PluginError, "The search space 'broken' failed: KeyError"),
        ("empty", InputError, "Nothing in the model can be chosen in the search space 'empty'"),
    ],
)
def test_a_space_without_choices_is_refused_and_its_name_stays_free(
    space: str, error: type[Exception], said: str, tmp_path: Path
) -> None:
    job = tiny_run.job(tmp_path, space=space, device="eyeriss")
    with pytest.raises(error, match=said):
        run(job)
    assert (tmp_path / "runs" / "tiny").exists() is (error is PluginError)


def test_a_space_is_told_what_it_has_parameters_for() -> None:
    (domain,) = offer(make("plain"), (images(2),), open_device("eyeriss"), space="old").space.domains
    assert domain.choices == (None, Prune(1))


def test_check_finds_a_space_without_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tiny_run.job(tmp_path).model
    data = str(mine).replace(":build", ":loaders")
    assert main(["check", "--model", str(mine), "--data", data, "--space", "empty"]) == 2
    assert "Nothing in the model can be chosen" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "name", "said"),
    [
        ("space", "none", "The search space 'none' gave a NoneType, which is no SearchSpace."),
        ("space", "foreign", "The search space 'foreign' offers prune of 'nolayer', which this model does not have."),
        ("space", "wide", "The search space 'wide' keeps 17 channels of"),
        ("device", "none", "The device 'none' is a NoneType without name, key, environment, capabilities"),
        ("device", "broken", "The device 'broken' failed when it was made: RuntimeError: no board."),
        ("device", "blank", "The device 'cpu' says what it can do by a NoneType, not by Capabilities."),
        ("device", "mute", "The device 'cpu' failed when it was asked what it can do: OSError: no answer."),
    ],
)
def test_check_and_search_name_the_space_or_the_device(
    option: str, name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--{option}", name, "--budget", "50%macs", "--trials", "1", "--recover", "0", "--tracking-uri", ""]
    arguments += ["--runs", str(tmp_path / "runs")]
    for verb in ("check", "search"):
        assert main([verb, *arguments]) == 1
        assert said in " ".join(capsys.readouterr().err.split())


def test_a_plug_in_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("gone", "no_such_package:Agent", "automc.agents")]
    monkeypatch.setattr(registry, "_points", lambda kind: points if kind == "agent" else [])
    with pytest.raises(PluginError, match="The agent 'gone' cannot be loaded: ModuleNotFoundError"):
        registry.load("agent", "gone")


def test_a_comparison_of_agents_that_all_fail_does_not_blame_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Broken, "fails", "ask")
    job: Any = tiny_run.job(tmp_path)
    arguments = ["--model", job.model, "--data", job.data, "--device", "eyeriss", "--budget", "75%", "--profile", "1s"]
    setting = ["--evaluations", "2", "--seeds", "1", "--out", str(tmp_path / "arena")]
    assert main(["bench", *arguments, *setting, "--agent", "broken"]) == 3
    shown = capsys.readouterr()
    assert "each of them failed" in shown.out
    assert "The agent 'broken' failed when it was asked: ZeroDivisionError" in shown.err
