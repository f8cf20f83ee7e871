"""What a run keeps for later: its cost tables and where it stands."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import synthetic
from records import DENSE, LIMIT_S, make_tables

from automc.answering import Known
from automc.noting import Noting
from automc.policy import Policy, Prune
from automc.predict.predictor import LearnedPredictor
from automc.predict.profile import profile_model
from automc.predict.simulated import Pricer
from automc.prepare import Prepared
from automc.progress import Progress, Reference
from automc.result import Finalist
from automc.rundir import RunDir
from automc.space import Codes
from automc.tables import Tables
from automc.tabulate import tabulate
from automc.testing import Toy, large_toy

GRAPH, SPACE = synthetic.graph(), synthetic.space()


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> LearnedPredictor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOMC_CACHE", str(tmp_path_factory.mktemp("cache")))
        device, dense = synthetic.ClosedFormDevice(), synthetic.build(Policy())
        profile = profile_model(device, synthetic.build, GRAPH, SPACE, synthetic.inputs(), dense)
        return LearnedPredictor.fit(profile, GRAPH, SPACE, dense, synthetic.BATCH)


@pytest.fixture(scope="module")
def tables(predictor: LearnedPredictor) -> Tables:
    curves = [np.arange(len(domain), dtype=float) for domain in SPACE.domains]
    curves[0][-1] = np.inf
    prepared = SimpleNamespace(space=SPACE, sensitivity=curves, traced=SimpleNamespace(graph=GRAPH))
    return tabulate(cast(Prepared, prepared), predictor, [_policy()])


def _policy() -> Policy:
    return Policy.of([("a", Prune(16)), ("c", Prune(24))])


def test_an_anchor_says_what_changing_one_choice_costs(tables: Tables, predictor: LearnedPredictor) -> None:
    anchor = tables.anchors[1]
    assert tables.policy(anchor.codes) == _policy()
    column = next(i for i, d in enumerate(SPACE.domains) if (d.target, d.knob) == ("c", "prune"))
    codes = np.array([anchor.codes])
    for code in range(len(SPACE.domains[column])):
        codes[0, column] = code
        expected = predictor.predict(codes)
        assert anchor.changed["latency_s"][column][code] == pytest.approx(expected.latency_s[0], rel=1e-5)
        assert anchor.changed["size_bytes"][column][code] == pytest.approx(expected.size_bytes[0], rel=1e-5)


def test_layers_take_their_share_of_the_time(tables: Tables) -> None:
    dense, pruned = tables.layers_s[Policy().digest], tables.layers_s[_policy().digest]
    faster = {name for name, before, after in zip(tables.layers, dense, pruned, strict=True) if after < 0.99 * before}
    assert faster == {"a", "b", "c", "d"}
    assert sum(tables.shares(_policy()).values()) == pytest.approx(1.0)
    assert tables.shares(Policy.of([("a", Prune(8))])) == {}


class _Pricing:
    """A toy's predictor as the engine's: with the time of the layers."""

    layers = tuple(layer.name for layer in GRAPH.layers)

    def __init__(self, toy: Toy) -> None:
        self.predict = toy.problem.predictor.predict

    def layers_s(self, codes: Codes) -> np.ndarray:
        return np.zeros((len(codes), len(GRAPH.layers)))

    def layers_j(self, codes: Codes) -> None:
        return None


@pytest.mark.parametrize("metric", ["latency_s", "size_bytes", "macs"])
def test_a_curve_falls_without_plateaus_and_costs_what_it_says(metric: str) -> None:
    toy = large_toy()
    space = toy.problem.space
    prepared = SimpleNamespace(space=space, sensitivity=toy.problem.sensitivity, traced=SimpleNamespace(graph=GRAPH))
    tables = tabulate(cast(Prepared, prepared), cast(Pricer, _Pricing(toy)), [Policy()])
    dense = Finalist(Policy(), toy.problem.predictor.predict(space.dense[None])[0], None, 0.95, None, False, "dense")
    points = Known(Reference(dense, {}, "accuracy"), (), (), tables).curve(metric, {})
    costs = toy.problem.predictor.predict(space.encode([p.answer.policy for p in points]))
    assert len({point.answer.policy for point in points}) == len(points) >= 20
    assert (np.diff([point.answer.loss for point in points]) < 0).all()
    overrun = costs.array(metric, upper=False) / np.array([point.limit for point in points])
    assert np.median(overrun) < 1.02
    assert overrun.max() < 1.2


def test_tables_survive_the_disk(tables: Tables, tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", {})
    assert run.tables() is None
    run.write_tables(tables)
    assert run.tables() == tables
    assert math.isinf(tables.loss[0][-1])
    assert "Infinity" not in (run.path / "tables.json").read_text()


class Watching:
    def __init__(self) -> None:
        self.told: list[Any] = []

    def stage(self, name: str, total: float | None) -> None:
        self.told.append((name, total))

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self.told.append(amount)

    def message(self, text: str, level: str = "info") -> None:
        self.told.append(text)


def test_progress_is_noted_and_passed_on(tmp_path: Path) -> None:
    run, watching = RunDir.create(tmp_path / "run", {}), Watching()
    noting = Noting(watching, run, every_s=0.0)
    dense = Finalist(Policy(), DENSE, None, 0.99, None, False, "dense")
    noting.reference(Reference(dense, {"latency_s": LIMIT_S}, "accuracy"))
    noting.stage("search", 4)
    noting.advance(1.0, "best 0.9")
    noting.message("noisy", "warning")
    progress = run.progress()
    assert progress is not None
    assert (progress.stage, progress.done, progress.total, progress.note) == ("search", 1.0, 4, "best 0.9")
    assert progress.warnings == ("noisy",)
    assert progress.reference == Reference(dense, {"latency_s": LIMIT_S}, "accuracy")
    assert progress.running
    assert watching.told == [("search", 4), 1.0, "noisy"]
    noting.end()
    ended = run.progress()
    assert ended is not None
    assert not ended.running


def test_progress_is_written_now_and_then(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", {})
    noting = Noting(Watching(), run, every_s=1e6)
    noting.stage("search", 1000)
    for _ in range(1000):
        noting.advance()
    progress = run.progress()
    assert progress is not None
    assert progress.done == 0.0


def test_a_disk_that_is_full_is_told_once(tmp_path: Path) -> None:
    watching = Watching()
    (tmp_path / "file").write_text("")
    noting = Noting(watching, RunDir(tmp_path / "file" / "run"), every_s=0.0)
    noting.stage("search", 4)
    for _ in range(3):
        noting.advance()
    assert sum(isinstance(told, str) for told in watching.told) == 1


def test_time_left_follows_the_pace() -> None:
    now = time.time()
    progress = Progress("search", 1.0, 4.0, began=now - 10, updated=now)
    assert progress.left_s == pytest.approx(30.0)
    assert replace(progress, total=None).left_s is None


def test_made_up_tables_are_consistent() -> None:
    tables = make_tables()
    assert tables.anchors[0].changed["latency_s"][0][0] == tables.anchors[0].cost.latency_s
    assert Tables.from_json(tables.to_json()) == tables
