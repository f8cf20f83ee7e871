"""Models with several outputs, and inputs by keyword: through tracing, compression, export, and back to the score function."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import conv, images
from torch import Tensor, nn
from torch.nn import functional as F

import automc
from automc.calibrate import calibrate
from automc.calling import bind_names, input_names, unbind
from automc.compression.apply import Stitcher
from automc.devices.cpu import Cpu
from automc.errors import InputError
from automc.evaluate.data import Data, TensorSplit, call_model, gather, inputs_of, names_of, targets_of
from automc.evaluate.divergence import distillation_loss, divergence
from automc.evaluate.inputs import check_inputs
from automc.evaluate.running import Deployed
from automc.evaluate.score import Score, accuracy, outputs_are_logits
from automc.export.onnx import build_onnx
from automc.export.torch_export import build_pt2
from automc.export.verify import relative_error, verify, verify_dense
from automc.outputs import Outputs, logits_of, tensors_of
from automc.policy import Policy, Prune, Quantize
from automc.tracing.trace import Traced, trace

Pair = namedtuple("Pair", "scores boxes")


class Ssd(nn.Module):
    """A single-shot detector (Liu et al. 2016): two feature maps, on each a convolution for scores and one for boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = conv(3, 16, stride=2), conv(16, 24, stride=2)
        self.scores = nn.ModuleList([nn.Conv2d(16, 2 * 3, 3, padding=1), nn.Conv2d(24, 2 * 3, 3, padding=1)])
        self.boxes = nn.ModuleList([nn.Conv2d(16, 2 * 4, 3, padding=1), nn.Conv2d(24, 2 * 4, 3, padding=1)])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = [self.stem(x)]
        maps.append(self.deep(maps[0]))
        return {"scores": self._rows(self.scores, maps, 3), "boxes": self._rows(self.boxes, maps, 4)}

    def _rows(self, heads: nn.ModuleList, maps: list[Tensor], size: int) -> Tensor:
        """(batch, anchors, size)"""
        found = [head(m).permute(0, 2, 3, 1).flatten(1, 2) for head, m in zip(heads, maps, strict=True)]
        return torch.cat([f.reshape(len(f), -1, size) for f in found], 1)


@dataclass
class Level:
    classes: Tensor
    offsets: Tensor
    centre: Tensor


class Fcos(nn.Module):
    """A head without anchors (Tian et al. 2019), shared towers, one `Level` per feature map, and the best class of each place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Sequential(conv(3, 16), conv(16, 16)), conv(16, 16, stride=2)
        self.tower = conv(16, 12)
        self.classes, self.offsets, self.centre = (nn.Conv2d(12, n, 3, padding=1) for n in (5, 4, 1))

    def forward(self, x: Tensor) -> tuple[list[Level], Tensor, None]:
        shallow = self.stem(x)
        levels = [self._level(m) for m in (shallow, self.deep(shallow))]
        return levels, levels[0].classes.argmax(1), None

    def _level(self, features: Tensor) -> Level:
        features = self.tower(features)
        return Level(self.classes(features), self.offsets(features).exp(), self.centre(features))


class Tuples(nn.Module):
    """A named tuple of a list and a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.scores, self.boxes = conv(3, 16), nn.Conv2d(16, 6, 1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Pair:
        x = self.stem(x)
        return Pair([self.scores(x)], self.boxes(x.mean((2, 3))))


@dataclass
class Answer:
    """What classifiers of text return."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@pytest.fixture(params=["own", "transformers"])
def answer(request: pytest.FixtureRequest) -> type:
    """The class of what a model returns: one of its own, or Hugging Face's where that is installed."""
    if request.param == "own":
        return Answer
    found: type = pytest.importorskip("transformers.modeling_outputs").SequenceClassifierOutput
    return found


class Named(nn.Module):
    """Takes token numbers and a mask by keyword, returns an object with logits and hidden states."""

    def __init__(self, answer: type) -> None:
        super().__init__()
        self.answer = answer
        self.tokens, self.up, self.down = nn.Embedding(20, 16), nn.Linear(16, 48), nn.Linear(48, 16)
        self.classify = nn.Linear(16, 4)

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Any:
        assert attention_mask is not None
        x = self.tokens(input_ids)
        x = x + self.down(F.relu(self.up(x)))
        weight = attention_mask.unsqueeze(-1).to(x.dtype)
        return self.answer(logits=self.classify((x * weight).sum(1) / weight.sum(1)), hidden_states=(x,))


MODELS = {"ssd": Ssd, "fcos": Fcos, "tuples": Tuples}
OUTPUTS = {
    "ssd": ["scores", "boxes"],
    "fcos": [f"0_{level}_{part}" for level in (0, 1) for part in ("classes", "offsets", "centre")] + ["1"],
    "tuples": ["scores_0", "boxes"],
}


def detector(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = MODELS[name]().eval()
    return model


def stitcher(found: Traced) -> Stitcher:
    return Stitcher(found, calibrate(found, [(images(32),)], 32), (images(32),))


def policy(found: Traced) -> Policy:
    """Every group at three quarters, every second layer on integers."""
    pruned = [(group.name, Prune(max(1, 3 * group.width // 4))) for group in found.graph.groups]
    return Policy.of([*pruned, *((layer.name, Quantize(8, 8)) for layer in found.graph.layers[::2])])


def same_structure(first: Any, second: Any) -> bool:
    return Outputs.of(first).spec == Outputs.of(second).spec


@pytest.mark.parametrize("name", MODELS)
def test_detectors_are_traced_with_their_channels(name: str) -> None:
    model = detector(name)
    found = trace(model, (images(2),))
    assert found.graph.groups
    assert same_structure(found.model(images(2)), model(images(2)))
    with torch.no_grad():
        assert relative_error(found.model(images(2)), model(images(2))) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_the_deployed_detector_returns_what_the_model_returns(name: str) -> None:
    found = trace(detector(name), (images(4),))
    model = stitcher(found).apply(policy(found))
    file = build_onnx(model, (images(4),), reduce_range=True)
    names = [output.name for output in onnx.load_from_string(file).graph.output]
    assert names == [f"output{n}" if n[0].isdigit() else n for n in OUTPUTS[name]]
    session = Cpu().session(file)
    assert verify(session, model, (images(4),)) < 0.1 if name != "fcos" else True
    deployed = Deployed(session, 4, found.outputs)
    returned, expected = deployed(images(7)), model(images(7))
    assert same_structure(returned, expected)
    for a, b in zip(tensors_of(returned), tensors_of(expected), strict=True):
        assert a.shape == b.shape
        if a.is_floating_point():
            assert relative_error(a, b) < 0.1


@pytest.mark.parametrize("name", MODELS)
def test_a_detector_is_kept_as_a_torch_export_program(name: str, tmp_path: Path) -> None:
    found = trace(detector(name), (images(2),))
    (tmp_path / "m.pt2").write_bytes(build_pt2(found.model, (images(2),)))
    returned = torch.export.load(tmp_path / "m.pt2").module()(images(2))
    assert len(tensors_of(returned)) == len(OUTPUTS[name])
    assert relative_error(tuple(tensors_of(returned)), tuple(tensors_of(found.model(images(2))))) < 1e-4


def test_each_output_counts_once_in_the_divergence_whatever_its_size() -> None:
    generator = torch.Generator().manual_seed(0)
    small, large = torch.randn(8, 1, generator=generator), torch.randn(8, 99, generator=generator)
    only_small = divergence({"a": small, "b": large}, {"a": -small, "b": large}, logits=False)
    only_large = divergence({"a": small, "b": large}, {"a": small, "b": -large}, logits=False)
    assert only_small == pytest.approx(divergence(small, -small, logits=False) / 2)
    assert only_large == pytest.approx(divergence(large, -large, logits=False) / 2)


def test_integer_outputs_are_compared_by_disagreement_and_not_distilled() -> None:
    scores, best = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert divergence((scores, best), (scores, best + torch.tensor([0, 0, 1, 1])), logits=False) == pytest.approx(0.25)
    assert float(distillation_loss((scores, best), (scores, best), logits=False)) == 0.0


def test_the_output_called_logits_is_compared_as_logits() -> None:
    logits, other = torch.randn(6, 4), torch.randn(6, 9)
    shifted = {"logits": logits + 3.0, "other": other}
    assert divergence({"logits": logits, "other": other}, shifted, logits=True) == pytest.approx(0.0, abs=1e-6)
    assert divergence({"logits": logits, "other": other}, shifted, logits=False) > 0.1
    assert logits_of((logits, other)) is None


def test_outputs_that_hold_something_else_are_refused() -> None:
    with pytest.raises(InputError, match=r"returns a object among its outputs.*Wrap it"):
        Outputs.of((torch.ones(1), object()))
    with pytest.raises(InputError, match="returns no tensor"):
        Outputs.of({"a": 1})


def test_a_detector_that_decodes_in_its_forward_is_refused_with_the_remedy() -> None:
    class Decoding(Ssd):
        def forward(self, x: Tensor) -> Any:
            return [{"boxes": b[s.amax(1) > 0]} for s, b in zip(*super().forward(x).values(), strict=True)]

    x = images(8)
    data = Data(None, [(x, torch.zeros(8))], [(x, torch.zeros(8))], None, "x")
    faults = check_inputs(Decoding().eval(), data, Score("own", lambda *_: 0.0))
    assert len(faults) == 1
    assert "one dictionary per sample" in faults[0]
    assert "raw outputs of its head" in faults[0]


def tokens(count: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 20, (count, 6), generator=generator)
    mask = (torch.arange(6) < torch.randint(2, 7, (count, 1), generator=generator)).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids[:, 0] % 4}


def text_data() -> Data:
    splits = [[tokens(32, seed), tokens(32, seed + 50)] for seed in range(4)]
    return Data(*splits, name="text")


def test_batches_by_keyword_have_names_inputs_and_targets() -> None:
    batch = tokens(5)
    assert names_of(batch) == ("attention_mask", "input_ids")
    assert [t is batch[n] for n, t in zip(names_of(batch), inputs_of(batch), strict=True)] == [True, True]
    assert targets_of(batch) is batch["labels"]
    assert names_of((batch, batch["labels"])) == names_of(batch)
    assert names_of((images(2), torch.zeros(2))) == ()
    assert [t.dtype for t in gather([batch], 3)] == [torch.int64, torch.int64]


def test_a_bound_model_takes_both_ways_and_copies_do_too(answer: type) -> None:
    import copy

    model = Named(answer).eval()
    batch = tokens(3)
    expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    bind_names(model, names_of(batch))
    for each in (model, copy.deepcopy(model)):
        torch.testing.assert_close(each(*inputs_of(batch)).logits, expected)
        torch.testing.assert_close(call_model(each, batch).logits, expected)
        assert input_names(each) == names_of(batch)
    unbind(model)
    torch.testing.assert_close(model(batch["input_ids"], None, batch["attention_mask"]).logits, expected)


def test_a_model_with_named_inputs_and_outputs_goes_through_the_exports(answer: type, tmp_path: Path) -> None:
    torch.manual_seed(0)
    batch = tokens(8)
    found = trace(Named(answer).eval(), inputs_of(batch), names_of(batch))
    assert [group.width for group in found.graph.groups] == [48]
    stitch = Stitcher(found, calibrate(found, [inputs_of(batch)], 8), inputs_of(batch))
    model = stitch.apply(Policy.of([("up", Prune(32)), ("down", Quantize(8, 8))]))
    file = build_onnx(model, inputs_of(batch), reduce_range=True)
    graph = onnx.load_from_string(file).graph
    assert [i.name for i in graph.input] == ["attention_mask", "input_ids"]
    assert [o.name for o in graph.output] == ["logits", "hidden_states_0"]
    session = Cpu().session(file)
    verify(session, model, inputs_of(batch))
    deployed = Deployed(session, 8, found.outputs, names_of(batch))
    many = tokens(11, seed=3)
    returned = deployed(input_ids=many["input_ids"], attention_mask=many["attention_mask"])
    assert type(returned) is answer
    assert relative_error(returned.logits, model(*inputs_of(many)).logits) < 0.1
    assert accuracy(deployed, [many]) == accuracy(lambda **k: returned, [many])
    (tmp_path / "m.pt2").write_bytes(build_pt2(found.model, inputs_of(batch)))
    program = torch.export.load(tmp_path / "m.pt2").module()
    logits = program(**dict(zip(names_of(batch), inputs_of(batch), strict=True)))[0]
    torch.testing.assert_close(logits, found.model(*inputs_of(batch)).logits)


def test_logits_are_recognised_in_batches_and_outputs_with_names(answer: type) -> None:
    data, batch = text_data(), tokens(4)
    model = Named(answer).eval()
    own = Score("own", lambda *_: 0.0)
    assert check_inputs(model, data) == []
    assert outputs_are_logits(data, own, call_model(model, batch))
    assert data.input_names == ("attention_mask", "input_ids")
    assert data.digest == text_data().digest


def test_control_flow_on_values_is_found_before_a_search() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) if float(x.sum()) > 0 else self.second(x)

    model, ones = Branching().eval(), torch.ones(2, 3)
    session = Cpu().session(build_onnx(model, (ones,), reduce_range=False))
    verify_dense(session, model, [(ones,), (2 * ones,)])
    with pytest.raises(InputError, match="depends on the values of its input"):
        verify_dense(session, model, [(ones,), (-ones,)])


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOMC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


OPTIONS: dict[str, Any] = {"trials": 3, "recover": "1s", "tracking_uri": "", "profile": "2s", "name": "run"}


def agreement(reference: nn.Module) -> Any:
    """A score of a detector: how often its strongest class per anchor is the reference's; it reads the dictionary."""

    def score(model: Any, loader: Any) -> float:
        same = [
            (model(x)["scores"].argmax(-1) == reference(x)["scores"].argmax(-1)).double().mean().item()
            for x, _ in loader
        ]
        return float(np.mean(same))

    return score


def test_a_detector_is_compressed_from_end_to_end(tmp_path: Path) -> None:
    model = detector("ssd")
    splits = [TensorSplit(images(48, seed), torch.zeros(48), 16) for seed in range(4)]
    result = automc.compress(
        model, data=Data(*splits, name="boxes"), evaluate=agreement(model), runs=str(tmp_path), budget="100s", batch_size=16,
        **OPTIONS,
    )  # fmt: skip
    assert set(result.model(images(2))) == {"scores", "boxes"}
    session = onnxruntime.InferenceSession(result.onnx, providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["scores", "boxes"]
    assert {f.stage for f in result.summary.finalists} == {"dense", "finalist", "recovered"} - {"dense"}


def test_a_text_classifier_with_keywords_is_compressed_from_end_to_end(answer: type, tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = automc.compress(
        Named(answer).eval(), data=text_data(), runs=str(tmp_path), budget="100s", batch_size=16, **OPTIONS
    )
    batch = tokens(2)
    assert result.model(batch["input_ids"], None, batch["attention_mask"]).logits.shape == (2, 4)
    session = onnxruntime.InferenceSession(result.onnx, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["attention_mask", "input_ids"]
