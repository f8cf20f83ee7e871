"""Sequential reconstruction brings a stitched model nearer to the dense one, on inputs it was not solved on."""

from __future__ import annotations

import pytest
import torch
from networks import images, make

from automc.calibrate import calibrate
from automc.compression.apply import Stitcher
from automc.compression.quantize import Quantized
from automc.policy import LowRank, Policy, Prune, Quantize, Sparsify
from automc.tracing.trace import trace


def stitcher(name: str) -> Stitcher:
    found = trace(make(name), (images(4),))
    return Stitcher(found, calibrate(found, [(images(256),)], 256), (images(64),))


def half(stitch: Stitcher) -> Policy:
    return Policy.of((g.name, Prune(max(1, g.width // 2))) for g in stitch.traced.graph.groups)


@pytest.mark.parametrize(("name", "share"), [("plain", 0.9), ("residual", 0.9), ("dense", 0.9), ("mobile", 1.0)])
def test_the_refined_model_is_nearer_to_the_dense_one(name: str, share: float) -> None:
    stitch = stitcher(name)
    held = images(256, seed=9)
    wanted = stitch.traced.model(held)
    before = stitch.apply(half(stitch))
    after = stitch.refine(half(stitch), [(images(64, seed=s),) for s in range(20, 28)])
    errors = [float((model(held) - wanted).square().mean()) for model in (before, after)]
    assert errors[1] < share * errors[0]


def test_factors_and_rounded_layers_are_refined_in_place() -> None:
    stitch = stitcher("residual")
    policy = Policy.of([*half(stitch), ("b2.0", LowRank(4)), ("a2.0", Quantize(8, 8)), ("head.2", Quantize(8, 8))])
    held = images(256, seed=9)
    wanted = stitch.traced.model(held)
    before = stitch.apply(policy)
    after = stitch.refine(policy, [(images(64, seed=s),) for s in range(20, 28)])
    assert [type(m) for m in before.modules()] == [type(m) for m in after.modules()]
    assert float((after(held) - wanted).square().mean()) < float((before(held) - wanted).square().mean())


@pytest.mark.parametrize("codes", ["uniform", "kmeans"])
def test_rounded_weights_are_on_their_grid_afterwards(codes: str) -> None:
    stitch = stitcher("residual")
    rounded = [(name, Quantize(4, 8, codes=codes)) for name in ("a2.0", "head.2")]
    after = stitch.refine(Policy.of([*half(stitch), *rounded]), [(images(64, seed=s),) for s in range(20, 28)])
    for name, spec in rounded:
        layer = after.get_submodule(name)
        assert isinstance(layer, Quantized)
        assert layer.spec == spec
        weight = layer.inner.weight.detach().clone()
        layer.requantize()
        torch.testing.assert_close(layer.inner.weight.detach(), weight)


@pytest.mark.parametrize("others", [[], [("a2.0", Quantize(8, 8))]])
def test_zeros_of_a_sparse_layer_stay(others: list[tuple[str, Quantize]]) -> None:
    stitch = stitcher("residual")
    policy = Policy.of([*half(stitch), ("a2.0", Sparsify(0.25)), *others])
    before, after = stitch.apply(policy), stitch.refine(policy, [(images(64, seed=s),) for s in range(20, 28)])
    old, new = (dict(model.named_parameters()) for model in (before, after))
    name = next(name for name in old if name.startswith("a2.0") and name.endswith("weight"))
    assert bool((new[name][old[name] == 0] == 0).all())
    assert not torch.equal(new[name], old[name])


def test_two_images_cannot_make_it_much_worse() -> None:
    """What judges the ridge is held out, so that least squares on next to nothing is not believed."""
    stitch = stitcher("residual")
    held = images(256, seed=9)
    wanted = stitch.traced.model(held)
    before = float((stitch.apply(half(stitch))(held) - wanted).square().mean())
    refined = stitch.refine(half(stitch), [(images(1, seed=s),) for s in range(20, 24)])
    assert float((refined(held) - wanted).square().mean()) < 1.5 * before


def test_the_stitched_model_is_left_as_it_is() -> None:
    stitch = stitcher("plain")
    first = stitch.apply(half(stitch))(images(3))
    stitch.refine(half(stitch), [(images(16, seed=s),) for s in range(20, 24)])
    assert torch.equal(stitch.apply(half(stitch))(images(3)), first)
