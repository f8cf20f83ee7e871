"""The database of layer variants: what is stitched from disk is what was made, and joint choices are composed as documented."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import images, make
from torch import nn

from automc.calibrate import LayerStats, Lazily, calibrate, diagonal_layers, output_sensitivity
from automc.compression.apply import Stitcher
from automc.compression.database import Database
from automc.compression.frozen import freeze, thaw
from automc.compression.quantize import Quantized
from automc.compression.variants import Key
from automc.errors import InputError
from automc.policy import LowRank, Policy, Prune, Quantize, Spec
from automc.search_spaces.default import default
from automc.space import SearchSpace
from automc.tracing.trace import Traced, trace


def prepared(name: str = "residual") -> tuple[Traced, dict[str, LayerStats]]:
    found = trace(make(name), (images(4),))
    return found, calibrate(found, [(images(64),)], 64)


def small_space(traced: Traced) -> SearchSpace:
    return default(traced.graph, channel_block=4, int8=True, levels=3)


def never() -> dict[str, LayerStats]:
    raise AssertionError("the calibration data were asked for")


def outputs_of(layer: str, model: nn.Module) -> torch.Tensor:
    """What a layer makes of the images that it was calibrated with."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        model(images(64))
    handle.remove()
    return seen[0]


def test_a_second_search_stitches_from_disk_without_calibrating(tmp_path: Path) -> None:
    traced, stats = prepared()
    space = small_space(traced)
    first = Stitcher(traced, stats, (images(32),), folder=tmp_path)
    assert first.database.build(space) > 0
    again = Stitcher(traced, Lazily(never), (images(32),), folder=tmp_path)
    for policy in space.decode(space.sample(5, np.random.default_rng(0))):
        assert torch.equal(first.apply(policy)(images(3)), again.apply(policy)(images(3)))


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    traced, stats = prepared("plain")
    space = small_space(traced)
    Database(traced, stats, tmp_path).build(space)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-10])
    key = Key("1", (), None, Quantize(8, 8))
    assert isinstance(Database(traced, stats, tmp_path).variant(key), Quantized)


def test_only_what_is_new_is_written(tmp_path: Path) -> None:
    traced, stats = prepared("plain")
    database = Database(traced, stats, tmp_path)
    database.variant(Key("1", (), None, Quantize(8, 8)))
    database.save()
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert set(written) == {"1.safetensors"}
    database.variant(Key("1", (), None, Quantize(8, 8)))
    database.save()
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written


def test_stitched_models_share_tensors_and_finished_ones_share_nothing() -> None:
    traced, stats = prepared()
    stitch = Stitcher(traced, stats, (images(32),))
    stitched = stitch.apply(Policy.of([("b1.0", Quantize(8, 8))]))
    own = {parameter.data_ptr() for parameter in traced.model.parameters()}
    assert any(parameter.data_ptr() in own for parameter in stitched.parameters())
    finished = stitch.finish(stitched)
    assert not any(parameter.data_ptr() in own for parameter in finished.parameters())


def test_the_error_of_a_combination_is_near_the_sum_of_its_choices_errors() -> None:
    """Single choices make errors that hardly correlate, so squared errors add: what agents assume. Here within a half."""
    traced, stats = prepared("residual")
    stitch = Stitcher(traced, stats, (images(32),), carries=False)
    wanted = outputs_of("b2.0", traced.model)

    def error(*choices: tuple[str, Spec]) -> float:
        return float((outputs_of("b2.0", stitch.apply(Policy.of(choices))) - wanted).square().sum())

    choices: list[tuple[str, Spec]] = [("b1.0", Prune(8)), ("b2.0", LowRank(8)), ("b2.0", Quantize(4, 8))]
    alone = [error(choice) for choice in choices]
    assert min(alone) > 0
    assert 0.5 * sum(alone) < error(*choices) < 1.5 * sum(alone)


def test_stored_modules_come_back_as_they_were_and_unknown_ones_are_refused() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, (3, 1), padding=(1, 0), bias=False), Quantized(nn.Conv2d(4, 5, 1), Quantize(8, 8))).eval()  # fmt: skip
    module[1].set_range(-1.0, 2.0)
    back = thaw(freeze(module), dict(module.state_dict()))
    assert torch.equal(back(images(2)), module(images(2)))
    with pytest.raises(InputError, match="cannot be read"):
        thaw({"class": "Popen", "args": "ls"}, {})
    with pytest.raises(TypeError, match="GRU"):
        freeze(nn.GRU(3, 3))


def test_layers_that_do_not_fit_into_memory_keep_a_diagonal_widest_first() -> None:
    traced, _ = prepared("plain")
    widths = {layer.name: layer.in_channels * layer.kernel[0] * layer.kernel[1] for layer in traced.graph.layers}
    whole = 4 * sum(width**2 for width in widths.values())
    widest = max(widths, key=lambda name: widths[name])
    assert diagonal_layers(traced.graph, whole) == []
    assert diagonal_layers(traced.graph, whole - 1) == [widest]
    stats = calibrate(traced, [(images(16),)], 16, memory_bytes=whole - 1)
    assert not stats[widest].full
    assert sum(not each.full for each in stats.values()) == 1


def test_output_sensitivity_is_the_diagonal_of_the_fisher_information() -> None:
    """Of a linear classifier in closed form: p (1 - p) per logit; 4,096 drawn labels are within 10 %."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    inputs = torch.randn(4096, 12)
    traced = trace(model, (inputs[:2],))
    found = output_sensitivity(traced, [(inputs,)], logits=True)["1"]
    probability = traced.model(inputs).softmax(1)
    torch.testing.assert_close(found, (probability * (1 - probability)).mean(0), rtol=0.1, atol=0.0)


def test_pruned_layers_set_ranges_from_the_channels_that_are_left() -> None:
    traced, stats = prepared("plain")
    stitch = Stitcher(traced, stats, (images(32),))
    layer = stitch.apply(Policy.of([("1", Quantize(8, 8)), ("0.1.0", Prune(12))])).get_submodule("1")
    assert isinstance(layer, Quantized)
    assert layer.rounds_input
    assert layer.inner.weight.shape == (20, 48)
