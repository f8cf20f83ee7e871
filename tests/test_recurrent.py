"""Recurrent classifiers: traced, factorised, rounded, exported, and compressed from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import automc
from automc.calibrate import calibrate
from automc.compression.apply import Stitcher
from automc.compression.recurrent import RoundedRecurrent, bake
from automc.compression.stacks import Stack, split
from automc.compression.variants import Key
from automc.devices.cpu import Cpu
from automc.evaluate.data import Data, TensorSplit
from automc.export.onnx import build_onnx
from automc.export.verify import relative_error, verify
from automc.policy import LowRank, Policy, Quantize
from automc.search_spaces.default import default
from automc.tracing.trace import Traced, trace

STEPS, WIDTH, HIDDEN = 6, 24, 16


class Sequence(nn.Module):
    """A classifier of (batch, steps, features) by the last state of a recurrent layer."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(WIDTH, HIDDEN, **options)
        self.classify = nn.Linear(HIDDEN * (2 if self.rnn.bidirectional else 1), 5)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1))
        return self.classify(outputs.mean(1 if self.rnn.batch_first else 0))


class Text(nn.Module):
    """Token numbers through an embedding and a GRU, which gives its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.gru = nn.Embedding(30, WIDTH), nn.GRU(WIDTH, HIDDEN, batch_first=True)
        self.classify = nn.Linear(HIDDEN, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.classify(self.gru(self.tokens(ids))[1][-1])


MODELS = {
    "lstm": lambda: Sequence(nn.LSTM, batch_first=True),
    "lstm stack": lambda: Sequence(nn.LSTM, batch_first=True, num_layers=2, bidirectional=True),
    "gru": lambda: Sequence(nn.GRU),
    "gru both ways": lambda: Sequence(nn.GRU, batch_first=True, bidirectional=True),
    "plain": lambda: Sequence(nn.RNN, batch_first=True, nonlinearity="relu"),
    "text": Text,
}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = MODELS[name]()
    return model.eval()


def inputs(name: str, count: int = 16, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if name == "text":
        return torch.randint(0, 30, (count, STEPS), generator=generator)
    mixing = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0))
    return torch.randn(count, STEPS, 6, generator=generator) @ mixing  # of rank 6


def traced(name: str) -> Traced:
    return trace(make(name), (inputs(name, 4),))


def stitcher(name: str) -> Stitcher:
    found = traced(name)
    return Stitcher(found, calibrate(found, [(inputs(name, 64),)], 64), (inputs(name),))


def recurrent(found: Traced) -> list[str]:
    return [layer.name for layer in found.graph.layers if layer.kind == "recurrent"]


@pytest.mark.parametrize("name", MODELS)
def test_each_recurrent_layer_is_offered_with_its_size_and_work(name: str) -> None:
    found = traced(name)
    assert relative_error(found.model(inputs(name)), make(name)(inputs(name)).detach()) < 1e-5
    layers = [found.graph.layer[layer] for layer in recurrent(found)]
    stored = sum(
        p.numel() for m in make(name).modules() if isinstance(m, nn.RNNBase) for p in m.parameters() if p.dim() > 1
    )
    assert sum(layer.weight_count for layer in layers) == stored
    assert sum(layer.macs for layer in layers) == stored * STEPS
    assert len(layers) == (2 if name == "lstm stack" else 1)
    assert not any(left.name.startswith(("rnn", "gru")) for left in found.graph.left_alone)


@pytest.mark.parametrize("name", MODELS)
def test_the_default_space_offers_rank_and_bits(name: str) -> None:
    found = traced(name)
    knobs = {(d.target, d.knob) for d in default(found.graph, channel_block=8, int8=True).domains}
    assert {(layer, knob) for layer in recurrent(found) for knob in ("low_rank", "quantize")} <= knobs


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_split_stack_is_called_like_the_stack(kind: Any, bidirectional: bool) -> None:
    torch.manual_seed(0)
    stack = kind(4, 3, num_layers=3, bidirectional=bidirectional)
    first = torch.randn(3 * (2 if bidirectional else 1), 2, 3)
    states = (first, first.flip(0)) if kind is nn.LSTM else first
    x = torch.randn(5, 2, 4)
    for arguments in ((x,), (x, states)):
        torch.testing.assert_close(split(stack)(*arguments), stack(*arguments))
    assert split(stack).hidden_size == stack.hidden_size


@pytest.mark.parametrize("name", ["lstm", "gru", "gru both ways", "plain"])
def test_a_rank_that_the_inputs_have_loses_nothing(name: str) -> None:
    stitch = stitcher(name)
    model = stitch.apply(Policy.of([("rnn", LowRank(6))]))
    assert relative_error(model(inputs(name)), stitch.traced.model(inputs(name))) < 0.02
    lower = stitch.apply(Policy.of([("rnn", LowRank(2))]))
    assert relative_error(lower(inputs(name)), stitch.traced.model(inputs(name))) > 0.02


@pytest.mark.parametrize("name", MODELS)
def test_fewer_bits_lose_more_and_are_whole_numbers_of_steps(name: str) -> None:
    stitch = stitcher(name)
    found = {
        bits: stitch.apply(Policy.of((n, Quantize(bits, 32)) for n in recurrent(stitch.traced))) for bits in (8, 3)
    }
    errors = {b: relative_error(m(inputs(name)), stitch.traced.model(inputs(name))) for b, m in found.items()}
    assert errors[8] < 0.02 < errors[3]
    assert set(bake(found[3]).values()) == {3}
    weight = next(m for m in found[3].modules() if isinstance(m, nn.RNNBase)).weight_hh_l0
    assert all(len(row.unique()) <= 7 for row in weight)


def loaded_operators(file: bytes, folder: Path) -> list[str]:
    """The operators that ONNX Runtime runs at every inference."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "loaded.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "loaded.onnx").graph.node]


@pytest.mark.parametrize("name", MODELS)
def test_the_exported_file_agrees_stores_bytes_and_decodes_them_once(name: str, tmp_path: Path) -> None:
    stitch, example = stitcher(name), (inputs(name, 4),)
    layers = recurrent(stitch.traced)
    dense = build_onnx(stitch.traced.model, example, reduce_range=False)
    policy = Policy.of([spec for n in layers for spec in ((n, LowRank(8)), (n, Quantize(8, 32)))])
    for chosen in (policy, Policy.of((n, Quantize(4, 32)) for n in layers)):
        model = stitch.apply(chosen)
        file = build_onnx(model, example, reduce_range=False)
        assert verify(Cpu().session(file), model, example) < 1e-3
        kept = onnx.load_from_string(file).graph.initializer
        assert sum(t.data_type == onnx.TensorProto.INT8 for t in kept) >= 2 * len(layers)
        assert len(file) < len(dense)
        floating = stitch.apply(Policy.of(pair for pair in chosen if isinstance(pair[1], LowRank)))
        as_floats = build_onnx(floating, example, reduce_range=False)
        assert loaded_operators(file, tmp_path) == loaded_operators(as_floats, tmp_path)


def test_rounded_layers_train_through_their_rounding() -> None:
    stitch = stitcher("lstm")
    model = stitch.apply(Policy.of([("rnn", Quantize(4, 32))]))
    assert isinstance(model.get_submodule("rnn"), RoundedRecurrent)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model(inputs("lstm")).square().mean().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters())


def test_a_stack_that_the_model_reads_itself_is_left_alone() -> None:
    class Reading(Sequence):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.rnn.weight_hh_l1.sum()

    found = trace(Reading(nn.LSTM, batch_first=True, num_layers=2).eval(), (inputs("lstm", 4),))
    assert not any(isinstance(module, Stack) for module in found.model.modules())
    assert {left.name: left.reason for left in found.graph.left_alone}["rnn"] == "its layers could not be split"


def test_packed_sequences_and_projected_states_are_left_alone_with_a_reason() -> None:
    class Packed(Sequence):
        def forward(self, x: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, torch.full((len(x),), STEPS), batch_first=True)
            return self.classify(self.rnn(packed)[1][0][-1])

    for model, words in (
        (Packed(nn.LSTM, batch_first=True), "something else"),
        (nn.Sequential(nn.LSTM(WIDTH, HIDDEN, proj_size=4)), "projected"),
    ):
        reasons = [left.reason for left in trace(First(model).eval(), (inputs("lstm", 4),)).graph.left_alone]
        assert any(words in reason for reason in reasons), reasons


class First(nn.Module):
    """The first of several outputs, with a linear layer behind it so that there is something to offer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.last = inner, nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(x)
        return self.last(found[0] if isinstance(found, tuple) else found)


@pytest.mark.parametrize("name", ["lstm", "text"])
def test_a_recurrent_classifier_is_compressed_from_end_to_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOMC_CACHE", str(tmp_path / "cache"))
    model = make(name)

    def labelled(seed: int) -> TensorSplit:
        x = inputs(name, 64, seed)
        with torch.no_grad():
            return TensorSplit(x, model(x).argmax(1), 32)

    result = automc.compress(
        model, data=Data(*map(labelled, range(4)), name="sequences"), runs=str(tmp_path / "runs"), budget="100s",
        trials=3, recover="1s", tracking_uri="", profile="2s", name="run", batch_size=8,
    )  # fmt: skip
    assert result.model(inputs(name, 3)).shape == (3, 5)
    assert result.summary.best is not None


@pytest.mark.parametrize("name", ["lstm", "gru both ways"])
def test_the_error_of_a_variant_grows_with_what_is_taken_away(name: str) -> None:
    stitch = stitcher(name)

    @torch.no_grad()
    def error(**choice: Any) -> float:
        layers = stitch.database.variant(Key("rnn", **choice)), stitch.traced.model.get_submodule("rnn")
        found, expected = (layer(inputs(name))[0] for layer in layers)
        return relative_error(found, expected)

    ranks = [error(low_rank=LowRank(rank)) for rank in (24, 4, 2)]
    bits = [error(quantize=Quantize(bits, 32)) for bits in (8, 5, 3)]
    assert ranks[0] < 1e-2
    assert ranks == sorted(ranks)
    assert bits == sorted(bits)
    assert bits[0] < 0.03 < bits[-1] < 1.0
