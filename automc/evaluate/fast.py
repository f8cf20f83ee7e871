"""The fastest evaluator that gives a search's scores: runtime or PyTorch, racing or not, decided once on the dense model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from automc.compression.apply import Stitcher
from automc.evaluate.agreement import agrees, refused_targets
from automc.evaluate.data import Split, inputs_of
from automc.evaluate.racing import MIN_SAMPLES, Racing, Samples
from automc.evaluate.running import Stitched
from automc.evaluate.runtime import Builder, Running, Runtime
from automc.evaluate.score import Score
from automc.export.template import Template
from automc.protocols import Evaluator, Observer
from automc.space import SearchSpace
from automc.trial import Trial

__all__ = ["fast_builder", "fast_evaluator", "is_comparable"]

_REPEATS = 3
_CHECKED = 4
"""Samples on which a template is compared with PyTorch."""
_TOLERANCE = 0.005
"""What two ways to run the dense model may differ in its score, as a share of it: a few samples may stand on the edge."""


def fast_evaluator(
    stitcher: Stitcher,
    space: SearchSpace,
    split: Split,
    score: Score,
    dense_score: float,
    observer: Observer,
    nat: float | None = None,
) -> Evaluator:
    """The evaluator of a search.

    Args:
        dense_score: of the dense model as deployed; what does not reproduce it is not used.
        nat: what a nat of divergence costs, see `Racing`.
    """
    builder = fast_builder(stitcher, space, split, score, dense_score, observer)
    per_sample = score.per_sample
    samples = None if per_sample is None else Samples.read(split)
    if per_sample is None or samples is None or (len(samples) < MIN_SAMPLES and nat is None):
        return Stitched(builder, split, score)
    try:
        racing = Racing(builder, samples, per_sample, nat)
    except Exception as error:  # the user's own function
        return _on_all(Stitched(builder, split, score), f"per_sample raised {type(error).__name__}: {error}", observer)
    if not _close(float(racing.dense.mean()), dense_score):
        return _on_all(Stitched(builder, split, score), "the mean of per_sample is not the score", observer)
    return racing


def is_comparable(trial: Trial, evaluator: Evaluator) -> bool:
    """Whether the merit of a recorded trial is on the scale of what the evaluator says; that of an earlier version may not be."""
    return trial.worth is not None or not (isinstance(evaluator, Racing) and evaluator.tells_worth)


def _on_all(evaluator: Evaluator, reason: str, observer: Observer) -> Evaluator:
    observer.message(f"Every candidate runs on all validation samples: {reason}.")
    return evaluator


def fast_builder(
    stitcher: Stitcher, space: SearchSpace, split: Split, score: Score, dense_score: float, observer: Observer
) -> Builder:
    """ONNX Runtime from one template where it runs the dense model faster than PyTorch and to the same score, else PyTorch."""
    model = stitcher.traced.model
    batch = inputs_of(next(iter(split)))
    few = tuple(tensor[:_CHECKED] for tensor in batch)

    def in_pytorch(reason: str) -> Builder:
        observer.message(f"Candidates are evaluated in PyTorch: {reason}.")
        return stitcher

    try:
        template = Template(model, few)
        session = Running(template.stitch(model))
    except Exception as error:  # an exporter may raise anything, and PyTorch runs what cannot be exported
        return in_pytorch(str(error).partition("\n")[0].rstrip("."))
    if not agrees(template, model, few):
        return in_pytorch("its exported graph does not compute what it does for every batch size")
    if _seconds(session, batch) > _seconds(model, batch):
        return in_pytorch("it runs this model faster than ONNX Runtime")
    fault = _fault(score, session, split, dense_score)
    if fault:
        return in_pytorch(fault)
    refused = refused_targets(template, stitcher, space, few)
    if refused is None:
        return in_pytorch("no template follows its compression")
    if refused:
        observer.message(
            f"Policies of {', '.join(sorted(refused))} are evaluated in PyTorch: no template follows them."
        )
    return Runtime(stitcher, template, refused)


def _seconds(model: nn.Module, batch: Sequence[Tensor]) -> float:
    """The least time of a few runs on one batch, after one to warm up."""
    return min(_timed(lambda: model(*batch)) for _ in range(1 + _REPEATS))


def _timed(run: Callable[[], Any]) -> float:
    with torch.inference_mode():
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


def _fault(score: Score, session: nn.Module, split: Split, dense_score: float) -> str:
    """Why the score function cannot be given a session, "" where it can."""
    try:
        with torch.inference_mode():
            found = float(score(session, split))
    except Exception as error:  # the user's own function may want parameters, hooks or anything else of a module
        return f"the score function needs the module itself ({type(error).__name__}: {error})"
    return "" if _close(found, dense_score) else f"the score in ONNX Runtime is {found:.4g}, not {dense_score:.4g}"


def _close(found: float, expected: float) -> bool:
    return abs(found - expected) <= _TOLERANCE * abs(expected) + 1e-6
