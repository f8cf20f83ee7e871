"""Copies that share tensors: modules of their own, the original's parameters, and what classes say about copying themselves."""

from __future__ import annotations

import copy
from typing import Any

import torch
from networks import Residual, images
from torch import nn

from automc.compression.sharing import sharing_copy


def test_modules_are_new_and_tensors_are_shared() -> None:
    model = Residual(pad=False)
    twin = sharing_copy(model)
    assert {id(m) for m in model.modules()}.isdisjoint(id(m) for m in twin.modules())
    for mine, other in zip([*model.parameters(), *model.buffers()], [*twin.parameters(), *twin.buffers()], strict=True):
        assert mine is other
    x = images(2, seed=1)
    assert torch.equal(model.eval()(x), twin.eval()(x))


def test_a_replaced_module_or_parameter_leaves_the_original_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    twin = sharing_copy(model)
    weight = model[0].weight
    twin[0].weight = nn.Parameter(torch.zeros(4, 3))
    twin[0].register_buffer("extra", torch.zeros(1))
    twin.register_forward_hook(lambda *_: None)
    twin[1] = nn.Identity()
    assert model[0].weight is weight
    assert not hasattr(model[0], "extra")
    assert not model._forward_hooks
    assert isinstance(model[1], nn.ReLU)


def test_a_module_met_twice_is_met_twice_in_the_copy() -> None:
    layer = nn.Linear(2, 2)
    twin = sharing_copy(nn.Sequential(layer, nn.ReLU(), layer))
    assert twin[0] is twin[2]
    assert twin[0] is not layer


def test_attributes_that_can_change_are_not_shared() -> None:
    model = nn.Identity()
    model.sizes = [[1, 2], [3]]  # type: ignore[assignment]
    model.other = {"layer": model}  # type: ignore[assignment]
    twin: Any = sharing_copy(model)
    twin.sizes[0].append(5)
    assert model.sizes == [[1, 2], [3]]
    assert twin.other["layer"] is twin


def test_a_class_that_says_how_it_is_copied_is_asked() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.copies = 0

        def __deepcopy__(self, memo: dict[int, Any]) -> Counted:
            twin = Counted()
            memo[id(self)] = twin
            twin.copies = self.copies + 1
            return twin

    twin: Any = sharing_copy(nn.Sequential(Counted(), nn.Identity()))
    assert twin[0].copies == 1


def test_a_recurrent_layer_runs_in_the_copy() -> None:
    model = nn.LSTM(3, 4, batch_first=True)
    twin = sharing_copy(model)
    x = torch.randn(2, 5, 3)
    assert torch.equal(model(x)[0], twin(x)[0])
    assert twin.weight_ih_l0 is model.weight_ih_l0
    assert copy.deepcopy(twin)(x)[0].shape == (2, 5, 4)
