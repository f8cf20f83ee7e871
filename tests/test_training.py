"""Fine-tuning one model: learned steps, what stays as it was, what is told, and what a training survives."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

import pytest
import torch
from test_engine import data, trained
from torch import nn

from automc import weights
from automc.clock import Clock
from automc.compression.learned import fix_steps, learn_steps
from automc.compression.quantize import Quantized
from automc.compression.steps import stepped
from automc.errors import InputError
from automc.evaluate.data import Data
from automc.evaluate.score import Score, accuracy
from automc.job import Silent
from automc.policy import LowRank, Policy, Prune, Quantize
from automc.predict.targets import open_device
from automc.prepare import Prepared, prepare
from automc.recovery import recover as recovery
from automc.recovery.distil import Loss, Weights, hint_layers
from automc.recovery.student import WARM_UP, Lesson, mixed, quick_layout, samples
from automc.recovery.training import Choices, Plan, Training, best_state

PLAN = Plan(rounds=3, steps=8)


@lru_cache(maxsize=1)
def prepared() -> Prepared:
    return prepare(
        trained(), data(), Score("accuracy", accuracy), open_device("eyeriss", 1), batch_size=16, space="default",
        seed=0, profile_s=2.0, observer=Silent(), clock=Clock(),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOMC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def policy() -> Policy:
    """A third of the channels, one layer in factors, and two layers of few bits, one of them in groups with zero points."""
    graph = prepared().traced.graph
    a1, a2, b1 = (
        next(layer.name for layer in graph.layers if layer.name.startswith(name)) for name in ("a1", "a2", "b1")
    )
    thirds = [(group.name, Prune(max(1, group.width // 3))) for group in graph.groups]
    rounded = [(a1, Quantize(3, 6)), (a2, Quantize(4, 8, symmetric=False, group_size=16))]
    return Policy.of([*thirds, *rounded, (b1, LowRank(3, "svd"))])


def stitched() -> nn.Module:
    stitcher = prepared().stitcher
    return stitcher.finished(policy())


def lesson(**changes: object) -> Lesson:
    return replace(Lesson.of(prepared()), **changes)  # type: ignore[arg-type]


def training(choices: Choices | None = None, plan: Plan = PLAN, **changes: object) -> Training:
    layers = tuple(layer.name for layer in prepared().traced.graph.layers)
    return Training(stitched(), lesson(**changes), choices or Choices(0.02), plan, layers)


def test_the_gradients_of_learned_steps_are_those_of_the_paper() -> None:
    values = torch.tensor([-9.0, -0.74, 0.3, 0.5, 2.2], requires_grad=True)
    step = torch.tensor([0.4], requires_grad=True)
    stepped(values, step, torch.zeros(1), -3, 3).sum().backward()
    ratio = values.detach() / 0.4
    inside = ratio.abs() < 3
    wanted = torch.where(inside, ratio.round() - ratio, ratio.clamp(-3, 3)).sum() / math.sqrt(5 * 3)
    assert step.grad is not None
    assert values.grad is not None
    torch.testing.assert_close(step.grad, wanted[None])
    torch.testing.assert_close(values.grad, inside.float())


def test_learning_steps_and_fixing_them_again_changes_nothing() -> None:
    model, x = stitched(), prepared().ranges[0]
    before = model(x)
    steps = learn_steps(model)
    assert len(steps) == 4
    torch.testing.assert_close(model(x), before, rtol=1e-3, atol=1e-4)
    fix_steps(model)
    torch.testing.assert_close(model(x), before)
    assert not any(
        p.requires_grad for m in model.modules() if isinstance(m, Quantized) for p in (m.scale, m.weight_scale)
    )


def test_a_training_brings_the_model_nearer_and_keeps_its_form() -> None:
    before = stitched()
    run = training()
    rows = [run.round() for _ in range(3)]
    assert run.ended
    assert run.best["divergence"] < 0.7 * lesson().judge.divergence(before)
    assert [row["round"] for row in rows] == [1, 2, 3]
    after = weights.adopt(before, run.best_state)
    assert lesson().judge.examine(after) == run.best
    assert {n: p.shape for n, p in after.named_parameters()} == {n: p.shape for n, p in before.named_parameters()}
    pairs = [(a, b) for a, b in zip(after.modules(), before.modules(), strict=True) if isinstance(a, Quantized)]
    assert all(not torch.equal(a.weight_scale, b.weight_scale) for a, b in pairs)
    assert all(not torch.equal(a.scale, b.scale) for a, b in pairs)
    for layer, _ in pairs:
        torch.testing.assert_close(layer._on_grid(), layer.inner.weight)


def test_frozen_norms_train_no_statistics() -> None:
    assert not any(isinstance(m, nn.BatchNorm2d) for m in training(plan=replace(PLAN, frozen=True)).student.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in training().student.modules())


def test_a_loss_that_is_not_finite_ends_the_training_and_costs_nothing() -> None:
    run = training(Choices(1e30))
    start = dict(run.best)
    while not run.ended:
        run.round()
    assert len(run.history) < PLAN.rounds
    assert run.best["score"] >= start["score"]
    assert all(tensor.isfinite().all() for tensor in run.best_state.values())


def test_a_training_that_no_longer_improves_ends() -> None:
    run = training(plan=replace(PLAN, rounds=50, steps=1, patience=2), score=Score("half", lambda model, split: 0.5))
    while not run.ended:
        run.round()
    assert len(run.history) == 3


def test_a_killed_training_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    whole, first = training(), training()
    for _ in range(2):
        whole.round()
        first.round()
    first.save(path)
    second = training()
    second.load(path)
    assert second.history == first.history
    assert second.best == first.best
    for a, b in zip(second.student.state_dict().values(), first.student.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    second.round()
    assert second.ended
    found = best_state(tmp_path)
    assert found is not None
    assert found[0] == first.best
    path.write_bytes(path.read_bytes()[:100])
    third = training()
    third.load(path)
    assert third.history == []
    assert best_state(tmp_path) is None


def test_labels_hints_and_attention_maps_enter_the_loss() -> None:
    layers = hint_layers([layer.name for layer in prepared().traced.graph.layers])
    assert len(layers) == 3
    student, given = stitched(), lesson()
    inputs, targets = next(samples(given))
    assert targets is not None

    def value(weights: Weights, labels: torch.Tensor | None = targets) -> float:
        loss = Loss(student, given.teacher, weights, logits=True, layers=layers, example=inputs)
        return float(loss(inputs, labels))

    plain = value(Weights())
    assert value(Weights(labels=0.5)) != plain
    assert value(Weights(labels=0.5), None) == plain
    assert value(Weights(hints=1.0)) > plain
    assert value(Weights(attention=1.0)) > plain
    same = Loss(given.teacher, given.teacher, Weights(0, 1, 1), logits=True, layers=layers, example=inputs)
    assert float(same(inputs, None).detach()) == pytest.approx(0.0, abs=1e-5)


def test_inputs_alone_suffice() -> None:
    unlabelled = replace(data(), train=[x for x, _ in data().train])  # type: ignore[union-attr]
    inputs, targets = next(samples(lesson(data=unlabelled)))
    assert targets is None
    assert len(inputs[0]) == 64
    calibration = Data(None, data().calibration, data().validation, None, name="no training")
    assert len(next(samples(lesson(data=calibration)))[0][0]) == 64


def test_weights_are_refused_to_another_model() -> None:
    packed = weights.pack(stitched())
    again = weights.unpack(stitched(), packed)
    assert torch.equal(again(prepared().ranges[0]), stitched()(prepared().ranges[0]))
    with pytest.raises(InputError, match="of another model"):
        weights.unpack(nn.Linear(2, 2), packed)
    with pytest.raises(InputError, match="damaged"):
        weights.unpack(stitched(), packed[:50])


def test_mixtures_are_means_of_samples_of_the_batch() -> None:
    torch.manual_seed(0)
    rows = torch.eye(8)
    found = [inputs[0] for inputs, _ in islice(mixed(itertools.repeat(((rows,), torch.arange(8)))), 40)]
    plain = [batch for batch in found if torch.equal(batch, rows)]
    assert 10 <= len(plain) <= 30
    for batch in found:
        assert torch.allclose(batch.sum(1), torch.ones(8))
        assert (batch > 0).sum(1).max() <= 2


def test_numbers_of_tokens_are_not_mixed() -> None:
    rows = torch.arange(8)[:, None]
    batches = islice(mixed(itertools.repeat(((rows, torch.randn(8, 2)), None))), 10)
    assert all(torch.equal(inputs[0], rows) for inputs, _ in batches)


def test_the_layout_in_memory_changes_no_number() -> None:
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Unflatten(1, (4, 1)), nn.Conv3d(4, 2, (1, 3, 3))
    model, inputs = nn.Sequential(*layers).eval(), torch.randn(2, 3, 8, 8)
    before = model(inputs)
    assert quick_layout(model)[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(model(inputs), before, atol=1e-5)


@pytest.mark.parametrize(("width", "stride", "quick"), [(3, 2, False), (3, 1, True), (16, 2, True)])
def test_strided_pointwise_convolutions_of_few_channels_keep_their_layout(width: int, stride: int, quick: bool) -> None:
    model = quick_layout(nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 5, 1, stride=stride)))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last) is quick
    model(
        torch.randn(64, 3, 32, 32)
    ).square().mean().backward()  # on AVX2 it ends the process where the layout is changed
    assert model[0].weight.grad is not None


@pytest.mark.parametrize("ranks", [2, 3])
def test_recovery_does_not_depend_on_how_factors_share_their_norm(ranks: int) -> None:
    name = next(layer.name for layer in prepared().traced.graph.layers if layer.name.startswith("b1"))
    stitcher, reached = prepared().stitcher, []
    for share in (1.0, 16.0):
        model = stitcher.finished(Policy.of([(name, LowRank(ranks, "svd"))]))
        first, second = (m for m in model.get_submodule(name).modules() if isinstance(m, nn.Conv2d))
        first.weight.data *= share
        second.weight.data /= share
        before = lesson().judge.divergence(model)
        student = recovery.taught(model, lesson(), lambda step: step / 60, seed=0)
        reached.append(lesson().judge.divergence(student))
        assert reached[-1] < 0.8 * before
    assert reached[1] == pytest.approx(reached[0], rel=0.05)


def test_a_model_that_computes_what_the_dense_one_does_can_be_taught() -> None:
    """Its loss is less than nothing by rounding, for some orders of the same sums."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    batches, rounded_below = torch.randn(64, 32, 64), 0
    for seed in range(20):
        order = torch.randperm(256, generator=torch.Generator().manual_seed(seed))
        student = copy.deepcopy(teacher)
        student[0].weight.data, student[0].bias.data = teacher[0].weight.data[order], teacher[0].bias.data[order]
        student[2].weight.data = teacher[2].weight.data[:, order]
        rounded_below += float(recovery._loss(student, teacher, (batches[0],), True)) < 0
        lessons = (((inputs,), None) for inputs in batches)
        recovery._train(student, teacher, lessons, lambda step: step / 3, True, lambda _: None)
    assert rounded_below


def test_parameters_that_cannot_be_trained_stay_as_they_are() -> None:
    class Indexed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.order = nn.Parameter(torch.tensor([2, 0, 1]), requires_grad=False)
            self.empty = nn.Parameter(torch.empty(0, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x)[:, self.order]

    student, batches = Indexed(), itertools.repeat(((torch.randn(8, 3),), None))
    before = copy.deepcopy(student.state_dict())
    recovery._train(student, Indexed(), batches, lambda step: step / 5, True, lambda _: None)
    assert torch.equal(student.order, before["order"])
    assert not torch.equal(student.linear.weight, before["linear.weight"])


@pytest.mark.parametrize(("enough", "mixes"), [(59, True), (61, False)])
def test_recovery_learns_from_mixtures_once_it_knows_that_its_steps_are_enough(
    monkeypatch: pytest.MonkeyPatch, enough: int, mixes: bool
) -> None:
    monkeypatch.setattr(recovery, "_ENOUGH_TO_MIX", enough)
    torch.manual_seed(0)
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    met: list[tuple[torch.Tensor, ...]] = []
    student.register_forward_pre_hook(lambda _, inputs: met.append(inputs))
    once = torch.eye(4)
    batches = itertools.repeat(((once,), None))
    recovery._train(student, teacher, batches, lambda step: 0.5 + step / 120, True, lambda _: None)  # half is over
    assert len(met) == 60
    as_they_are = [bool((inputs[0] == once).all()) for inputs in met]
    assert all(as_they_are[:WARM_UP])
    assert all(as_they_are) is not mixes
