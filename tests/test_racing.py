"""Racing: candidates that cannot win are stopped early, and ones that can hardly ever are."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

from automc.errors import InputError
from automc.evaluate.betting import is_below, log_wealth
from automc.evaluate.data import TensorSplit
from automc.evaluate.racing import Racing, Samples
from automc.evaluate.score import Score, accuracy, right_share
from automc.execute.serial import Serial
from automc.loop import Loop
from automc.pareto import front
from automc.policy import Policy, Prune
from automc.protocols import Costs, Scored
from automc.space import Codes, Domain, SearchSpace
from automc.trial import Cost, Trial

SIZE = 600
SPACE = SearchSpace((Domain("a", "prune", (None, Prune(3), Prune(2), Prune(1))),))
POLICIES = SPACE.decode([[i] for i in range(4)])


def population(rights: float, ties: float, rng: np.random.Generator) -> np.ndarray:
    """(SIZE,) half of one plus the difference of two models' outcomes: alike on a share `ties` of the samples."""
    different = rng.random(SIZE) >= ties
    return np.where(different, (rng.random(SIZE) < rights).astype(float), 0.5)


@pytest.mark.parametrize("ties", [0.0, 0.8, 0.97])
def test_a_candidate_at_the_rivals_score_is_stopped_no_more_often_than_stated(ties: float) -> None:
    """At a true probability of 0.1 this test fails by chance once in 10,000 times; all looks of a race count as one."""
    rng, runs, error = np.random.default_rng(0), 400, 0.1
    values = population(0.5, ties, rng)
    orders = [rng.permutation(values) for _ in range(runs)]
    stopped = sum(bool(log_wealth(o, SIZE, values.mean()).max() >= -np.log(error)) for o in orders)
    assert stopped <= binom.ppf(1 - 1e-4, runs, error)


def test_a_candidate_that_cannot_win_is_stopped_well_before_the_end() -> None:
    rng = np.random.default_rng(1)
    for loss, most in ((0.3, 0.25), (0.1, 0.7)):
        values = np.where(rng.random(SIZE) < loss, 0.0, 0.5)
        wealth = log_wealth(values, SIZE, 0.5)
        assert int(np.argmax(wealth >= -np.log(0.01))) < most * SIZE
        assert is_below(values[: int(most * SIZE)], SIZE, 0.5, 0.01)


def test_wealth_is_never_won_against_the_truth_on_average() -> None:
    """Over all orders of a tiny population the mean wealth is at most one after every sample, exactly."""
    from itertools import permutations

    values = (0.0, 0.0, 0.5, 0.5, 1.0, 1.0)
    wealth = np.mean([np.exp(log_wealth(order, 6, 0.5)) for order in permutations(values)], axis=0)
    assert (wealth <= 1.0 + 1e-12).all()


def test_a_mean_that_is_out_of_reach_is_certain() -> None:
    assert is_below([0.0, 0.0, 0.0], 4, 0.5, 1e-12)
    assert not is_below([1.0, 1.0, 0.0], 4, 0.5, 0.5)


class Wrong(nn.Module):
    """Logits of two classes from inputs (batch, 1) that hold a number: wrong on a share of them, right on class 0 otherwise."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        wrong = (x[:, 0] < self.share).float()
        return torch.stack([1 - wrong, wrong], 1)


class Builder:
    """The models of POLICIES: wrong on 6, 5, 30 and 40 % of the samples."""

    def __init__(self) -> None:
        self.models = {p.digest: Wrong(s) for p, s in zip(POLICIES, (0.06, 0.05, 0.3, 0.4), strict=True)}

    def apply(self, policy: Policy) -> nn.Module:
        return self.models[policy.digest]


def split(count: int = 1000, batch: int = 50) -> TensorSplit:
    return TensorSplit(torch.linspace(0, 1, count)[:, None], torch.zeros(count, dtype=torch.long), batch)


def racing(builder: Builder | None = None, per_sample: Callable[..., Tensor] = right_share) -> Racing:
    samples = Samples.read(split())
    assert samples is not None
    return Racing(builder or Builder(), samples, per_sample)


def test_a_full_evaluation_gives_the_score() -> None:
    for policy in POLICIES:
        assert racing().evaluate(policy) == accuracy(Builder().apply(policy), split())


def test_a_loser_ends_early_with_an_estimate_and_a_winner_runs_to_the_end() -> None:
    builder = Builder()
    race = racing(builder)
    loser = race.race(POLICIES[3], rival=0.94)
    assert isinstance(loser, Scored)
    assert loser.samples is not None
    assert builder.models[POLICIES[3].digest].seen == loser.samples < 300
    assert loser == pytest.approx(0.6, abs=0.15)
    assert Scored.of(race.race(POLICIES[1], rival=0.7)).samples is None
    assert race.race(POLICIES[1], rival=0.7) == race.evaluate(POLICIES[1])
    assert race.race(POLICIES[3], rival=-np.inf) == race.evaluate(POLICIES[3])


class Linear:
    """All cost the same, so the best so far is everyone's rival."""

    def predict(self, codes: Codes) -> Costs:
        cost = np.ones(len(codes))
        return Costs(cost, cost, cost, cost, cost)


class InOrder:
    def __init__(self) -> None:
        self.left = list(POLICIES)

    def ask(self, count: int) -> Sequence[Policy]:
        taken, self.left = self.left[:1], self.left[1:]
        return taken

    def tell(self, trials: Sequence[Trial]) -> None:
        pass


def test_the_loop_races_against_the_best_that_costs_no_more_and_marks_what_was_stopped() -> None:
    trials = list(Loop(SPACE, InOrder(), Serial(racing()), Linear()).run(4))
    assert [t.samples is None for t in trials] == [True, True, False, False]
    assert front(trials) == [trials[1]]
    assert Trial.from_json(trials[3].to_json()).samples == trials[3].samples == 50


def test_what_is_cheaper_than_all_others_has_no_rival() -> None:
    class Cheaper(Linear):
        def predict(self, codes: Codes) -> Costs:
            cost = 1.0 - 0.1 * codes[:, 0]
            return Costs(cost, cost, cost, cost, cost)

    trials = list(Loop(SPACE, InOrder(), Serial(racing()), Cheaper()).run(4))
    assert all(t.samples is None for t in trials)


def test_an_estimate_never_stands_on_the_front() -> None:
    estimated = Trial(0, POLICIES[0], Cost(latency_s=1.0), 0.9, samples=64)
    assert front([estimated]) == []


def test_what_an_evaluation_tells_survives_pickling() -> None:
    copy = pickle.loads(pickle.dumps(Scored(0.5, 0.4, 64)))  # noqa: S301
    assert (copy, copy.worth, copy.samples) == (0.5, 0.4, 64)


class Fainter:
    """The dense model, and models that are as right as it and less sure."""

    def apply(self, policy: Policy) -> nn.Module:
        index = POLICIES.index(policy) if policy in POLICIES else 0
        return Scaled(1.0 if not len(policy) else 0.5 / (1 + index))


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * torch.stack([1 + x[:, 0], -1 - x[:, 0]], 1)


def test_of_candidates_that_score_alike_the_nearer_to_the_dense_model_is_worth_more() -> None:
    samples = Samples.read(split())
    assert samples is not None
    race = Racing(Fainter(), samples, right_share, nat=0.5)  # type: ignore[arg-type]
    found = [Scored.of(race.evaluate(policy)) for policy in POLICIES[1:]]
    assert [float(score) for score in found] == [1.0] * len(found)
    worths = [score.worth for score in found if score.worth is not None]
    assert worths == sorted(worths, reverse=True)
    assert len(set(worths)) == len(found)
    assert Scored.of(race.evaluate(Policy())).worth == 1.0
    assert all(0.5 < worth < 1.0 for worth in worths)


def test_worth_is_told_to_agents_and_recorded() -> None:
    samples = Samples.read(split())
    assert samples is not None
    race = Racing(Fainter(), samples, right_share, nat=0.5)  # type: ignore[arg-type]
    told: list[Trial] = []

    class Listening(InOrder):
        def tell(self, trials: Sequence[Trial]) -> None:
            told.extend(trials)

    trials = list(Loop(SPACE, Listening(), Serial(race), Linear()).run(4))
    assert [t.worth for t in told] == [t.worth for t in trials]
    assert all(t.merit == t.worth for t in trials)
    assert Trial.from_json(trials[1].to_json()).merit == trials[1].merit != trials[1].score
    assert replace(trials[1], worth=None).merit == trials[1].score
    assert replace(trials[1], state="failed", reason="no", score=None, worth=None).merit == -np.inf


class Surest:
    """Right everywhere and unsure, or wrong on the first twentieth and as sure as the dense model."""

    def apply(self, policy: Policy) -> nn.Module:
        return Scaled(0.05) if policy == POLICIES[1] else Off(0.05) if policy == POLICIES[2] else Scaled(1.0)


class Off(Scaled):
    def __init__(self, share: float) -> None:
        super().__init__(1.0)
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = super().forward(x)
        return torch.where(x[:, :1] < self.share, logits.flip(1), logits)


def test_what_is_worth_more_is_not_stopped_for_what_scores_more() -> None:
    samples = Samples.read(split())
    assert samples is not None
    race = Racing(Surest(), samples, right_share, nat=1.0)  # type: ignore[arg-type]
    agent = InOrder()
    agent.left = [POLICIES[1], POLICIES[2]]
    right, sure = Loop(SPACE, agent, Serial(race), Linear()).run(2)
    assert right.score is not None
    assert sure.score is not None
    assert right.score > sure.score
    assert right.merit < sure.merit
    assert sure.samples is None


def test_of_too_many_logits_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automc.evaluate.racing._MOST_LOGITS", 1999)
    samples = Samples.read(split())
    assert samples is not None
    race = Racing(Fainter(), samples, right_share, nat=0.5)  # type: ignore[arg-type]
    assert not race.tells_worth
    assert Scored.of(race.evaluate(POLICIES[2])).worth is None


def test_logits_are_compared_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = Samples.read(split())
    assert samples is not None
    race = Racing(Fainter(), samples, right_share, nat=0.5)  # type: ignore[arg-type]
    whole = Scored.of(race.evaluate(POLICIES[2])).worth
    monkeypatch.setattr("automc.evaluate.racing._LOGITS_AT_ONCE", 14)
    assert Scored.of(race.evaluate(POLICIES[2])).worth == pytest.approx(whole)


def test_outputs_that_are_no_numbers_cost_the_whole_price() -> None:
    class Broken(Fainter):
        def apply(self, policy: Policy) -> nn.Module:
            return Scaled(float("nan")) if len(policy) else Scaled(1.0)

    samples = Samples.read(split())
    assert samples is not None
    score = Scored.of(Racing(Broken(), samples, right_share, nat=0.5).evaluate(POLICIES[1]))  # type: ignore[arg-type]
    assert score.worth == pytest.approx(float(score) - 0.5)


def test_a_score_says_whether_it_is_a_mean_over_samples() -> None:
    def own(model: nn.Module, loader: object) -> float:
        return 0.0

    assert Score("accuracy", accuracy).per_sample is right_share
    assert Score("own", own).per_sample is None
    own.per_sample = right_share  # type: ignore[attr-defined]
    assert Score("own", own).per_sample is right_share


def test_accuracy_per_sample_is_the_share_of_its_targets() -> None:
    outputs = torch.tensor([[[3.0, 0.0], [0.0, 3.0]], [[3.0, 3.0], [0.0, 0.0]]])  # (2 samples, 2 classes, 2 places)
    assert right_share(outputs, torch.tensor([[0, 1], [0, 1]])).tolist() == [1.0, 0.5]


def test_values_that_are_not_shares_are_refused() -> None:
    with pytest.raises(InputError, match="per_sample"):
        racing(per_sample=lambda outputs, targets: 2.0 * outputs[:, 0])


def test_splits_that_do_not_fit_together_or_have_no_targets_are_not_raced() -> None:
    ragged = [(torch.zeros(2, 3), torch.zeros(2)), (torch.zeros(2, 4), torch.zeros(2))]
    assert Samples.read(ragged) is None
    assert Samples.read([(torch.zeros(2, 3), ["a", "b"])]) is None


def test_the_order_of_the_samples_is_random_and_always_the_same() -> None:
    first, second = Samples.read(split()), Samples.read(split())
    assert first is not None
    assert second is not None
    assert torch.equal(first.inputs[0], second.inputs[0])
    assert not torch.equal(first.inputs[0], split().x)
    assert torch.equal(first.inputs[0].sort(0).values, split().x)
