"""Templates: what is stitched in ONNX computes what is stitched in PyTorch, and what cannot be falls back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from networks import NETWORKS, Head, conv, images, make
from torch import nn

from automc.calibrate import calibrate
from automc.compression.apply import Stitcher
from automc.errors import AutomcError
from automc.evaluate.agreement import agrees, refused_targets
from automc.evaluate.data import TensorSplit
from automc.evaluate.fast import fast_builder, fast_evaluator
from automc.evaluate.racing import Racing
from automc.evaluate.running import Stitched
from automc.evaluate.runtime import Running, Runtime
from automc.evaluate.score import Score, accuracy
from automc.export.nodes import layer_part
from automc.export.template import Template
from automc.export.verify import relative_error
from automc.graph import LayerGraph
from automc.job import Silent
from automc.policy import LowRank, Policy, Prune, Quantize
from automc.space import Domain, SearchSpace
from automc.tracing.trace import trace


@lru_cache(maxsize=16)
def stitcher(name: str) -> Stitcher:
    return stitcher_of(make(name))


def stitcher_of(model: nn.Module) -> Stitcher:
    traced = trace(model, (images(2),))
    return Stitcher(traced, calibrate(traced, [(images(32),)], 32), (images(32),))


@lru_cache(maxsize=16)
def template(name: str) -> Template:
    return Template(stitcher(name).traced.model, (images(1),))


def space(graph: LayerGraph) -> SearchSpace:
    """Half and a quarter of each group; ranks, 8 and odd bits of each layer, and bits of its weights alone."""
    prune = [Domain(g.name, "prune", (None, Prune(g.width // 2), Prune(max(1, g.width // 4)))) for g in graph.groups]
    rank = [Domain(layer.name, "low_rank", (None, LowRank(3))) for layer in graph.layers if layer.low_rank]
    bits = (None, Quantize(8, 8), Quantize(4, 6))
    return SearchSpace((*prune, *rank, *(Domain(layer.name, "quantize", bits) for layer in graph.layers)))


def error(name: str, policy: Policy, count: int = 5) -> float:
    model = stitcher(name).apply(policy)
    found = Running(template(name).stitch(model))(images(count, seed=7))
    with torch.no_grad():
        return relative_error(found, model(images(count, seed=7)))


@pytest.mark.parametrize("name", NETWORKS)
def test_random_policies_compute_the_same_in_onnx(name: str) -> None:
    choices = space(stitcher(name).traced.graph)
    rng = np.random.default_rng(0)
    for policy in choices.decode(choices.sample(4, rng)):
        assert error(name, policy) < 1e-4  # rounded values may fall on the other side in one in a thousand places


@pytest.mark.parametrize("name", NETWORKS)
def test_every_knob_alone_on_every_layer_computes_the_same(name: str) -> None:
    choices = space(stitcher(name).traced.graph)
    for knob in ("prune", "low_rank", "quantize"):
        rows = choices.dense[None].copy()
        rows[:, choices.columns(knob)] = 1
        assert error(name, choices.decode(rows)[0]) < 1e-4


@pytest.mark.parametrize("count", [1, 3, 64])
def test_any_number_of_samples_runs(count: int) -> None:
    for name in ("residual", "attention", "shuffle"):
        assert error(name, Policy(), count) < 1e-5


def test_parameters_that_happen_to_be_equal_are_told_apart() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.LayerNorm(6)).eval()
    made = Template(model, (torch.randn(1, 6),))
    nn.init.normal_(model[3].weight)
    assert agrees(made, model, (torch.randn(4, 6),))


@pytest.mark.parametrize("method", ["svd", "tucker"])
@pytest.mark.parametrize("padding", ["same", "valid", (2, 1)])
def test_factorised_layers_keep_their_geometry(method: Any, padding: Any) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, (4, 3), padding=padding, dilation=(1, 2))
    stitch = stitcher_of(nn.Sequential(layer, nn.ReLU(), Head(8)))
    candidate = stitch.apply(Policy.of([("0", LowRank(2, method))]))
    assert agrees(Template(stitch.traced.model, (images(1),)), candidate, (images(3),))


def test_a_candidate_with_other_modules_is_refused() -> None:
    other = nn.Sequential(*stitcher("plain").apply(Policy()), nn.PReLU())
    with pytest.raises(AutomcError, match="has no place"):
        template("plain").stitch(other)
    with pytest.raises(AutomcError, match="no ONNX nodes for the Embedding"):
        layer_part("table", nn.Embedding(3, 3), "in", "out")


def chain() -> tuple[Template, Stitcher, SearchSpace]:
    """Three convolutions, one of them pruned and factorised, another rounded."""
    stitch = stitcher_of(nn.Sequential(conv(3, 8), conv(8, 12), conv(12, 8), Head(8)).eval())
    domains = [
        Domain("0.0", "quantize", (None, Quantize(8, 8))),
        Domain("1.0", "prune", (None, Prune(6), Prune(3))),
        Domain("1.0", "low_rank", (None, LowRank(4))),
    ]
    return Template(stitch.traced.model, (images(1),)), stitch, SearchSpace(tuple(domains))


class Scaled:
    """A stitcher whose pruned models put out something that a graph cannot follow, like a constant in the model's own code."""

    def __init__(self, inner: Stitcher) -> None:
        self.inner = inner

    def apply(self, policy: Policy) -> nn.Module:
        model = self.inner.apply(policy)
        if policy.get("1.0", Prune):
            model.register_forward_hook(lambda *call: 2 * call[-1])
        return model


def test_targets_that_a_template_cannot_follow_are_found_and_run_in_pytorch() -> None:
    made, stitch, choices = chain()
    scaled = Scaled(stitch)
    refused = refused_targets(made, scaled, choices, (images(4),), seed=1)
    assert refused == {"1.0"}
    runtime = Runtime(scaled, made, refused)
    pruned, rounded = Policy.of([("1.0", Prune(3))]), Policy.of([("0.0", Quantize(8, 8))])
    assert not isinstance(runtime.apply(pruned), Running)
    assert isinstance(runtime.apply(rounded), Running)
    assert refused_targets(made, stitch, choices, (images(4),)) == frozenset()


class Watching(Silent):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str, level: str = "info") -> None:
        self.messages.append(text)


def labelled(count: int = 64) -> TensorSplit:
    return TensorSplit(images(count), torch.arange(count) % 5, 16)


def choose(monkeypatch: pytest.MonkeyPatch, score: Any, dense: float | None = None, **times: float) -> tuple[Any, str]:
    """What `fast_builder` chooses for a score, and what it says; `times` replaces the measured seconds."""
    seconds: Mapping[type, float] = {Running: times.get("runtime", 1.0)}
    monkeypatch.setattr(
        "automc.evaluate.fast._seconds", lambda model, _: seconds.get(type(model), times.get("torch", 2))
    )
    stitch, watching = stitcher("residual"), Watching()
    expected = float(score(stitch.traced.model, labelled())) if dense is None else dense
    chosen = fast_builder(stitch, space(stitch.traced.graph), labelled(), score, expected, watching)
    return chosen, " ".join(watching.messages)


def test_the_runtime_is_used_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, said = choose(monkeypatch, Score("accuracy", accuracy))
    assert isinstance(chosen, Runtime)
    assert said == ""
    chosen, said = choose(monkeypatch, Score("accuracy", accuracy), runtime=3.0)
    assert isinstance(chosen, Stitcher)
    assert "faster than ONNX Runtime" in said


def test_scores_that_ask_where_the_model_is_are_evaluated_in_the_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_its_device(model: nn.Module, loader: Iterable[Any]) -> float:
        device = next(model.parameters()).device
        return float(model(images(2).to(device)).mean())

    chosen, said = choose(monkeypatch, of_its_device)
    assert isinstance(chosen, Runtime)
    assert said == ""


def test_scores_that_need_the_module_or_come_out_different_are_evaluated_in_pytorch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def of_a_layer(model: nn.Module, loader: Iterable[Any]) -> float:
        device = model.get_submodule("a1.0").get_parameter("weight").device
        return float(model(images(2).to(device)).mean())

    chosen, said = choose(monkeypatch, of_a_layer)
    assert isinstance(chosen, Stitcher)
    assert "needs the module itself" in said
    chosen, said = choose(monkeypatch, Score("accuracy", accuracy), dense=0.9)
    assert isinstance(chosen, Stitcher)
    assert "not 0.9" in said


def test_a_model_that_cannot_be_exported_is_evaluated_in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Template:
        raise AutomcError("The model cannot be exported to ONNX: no operator.")

    monkeypatch.setattr("automc.evaluate.fast.Template", broken)
    chosen, said = choose(monkeypatch, Score("accuracy", accuracy))
    assert isinstance(chosen, Stitcher)
    assert "no operator" in said


def test_scores_are_those_of_pytorch_raced_or_not() -> None:
    stitch = stitcher("residual")
    choices, score = space(stitch.traced.graph), Score("accuracy", accuracy)
    policies = choices.decode(choices.sample(3, np.random.default_rng(3)))
    for count, kind in ((64, Stitched), (320, Racing)):
        split = labelled(count)
        evaluator = fast_evaluator(stitch, choices, split, score, score(stitch.traced.model, split), Silent())
        assert isinstance(evaluator, kind)
        for policy in policies:
            expected = Stitched(stitch, split, score).evaluate(policy)
            assert evaluator.evaluate(policy) == pytest.approx(expected, abs=1.5 / count)


def test_a_score_whose_per_sample_is_something_else_is_not_raced() -> None:
    stitch, watching = stitcher("residual"), Watching()
    split = labelled(320)

    def own(model: nn.Module, loader: Iterable[Any]) -> float:
        return accuracy(model, loader)

    own.per_sample = lambda outputs, targets: torch.ones(len(targets))  # type: ignore[attr-defined]
    dense = accuracy(stitch.traced.model, split)
    evaluator = fast_evaluator(stitch, space(stitch.traced.graph), split, Score("own", own), dense, watching)
    assert isinstance(evaluator, Stitched)
    assert "mean of per_sample is not the score" in " ".join(watching.messages)
