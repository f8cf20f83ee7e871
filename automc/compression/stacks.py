"""Stacks of recurrent layers as single ones, so that each can be compressed on its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Stack", "StandIn", "input_parts", "like", "split"]

_ATTRIBUTES = (
    "mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size",
)  # fmt: skip


class StandIn(nn.Module):
    """A module that stands in for a recurrent layer: the model's code still finds the layer's numbers on it."""

    num_layers: int
    dropout: float

    def __init__(self, layer: Any) -> None:
        super().__init__()
        for name in _ATTRIBUTES:
            setattr(self, name, getattr(layer, name))

    def flatten_parameters(self) -> None:
        """Nothing: only recurrent layers on a GPU need it."""


class Stack(StandIn):
    """Recurrent layers one after the other, called as the stack that they were split from."""

    def __init__(self, stack: nn.RNNBase, layers: list[nn.RNNBase]) -> None:
        super().__init__(stack)
        for number, layer in enumerate(layers):
            self.add_module(str(number), layer)

    def forward(self, inputs: Any, hx: Any = None) -> tuple[Any, Any]:
        states = []
        for number, layer in enumerate(self.children()):
            inputs, state = layer(inputs, self._state(hx, number))
            states.append(state)
            if number + 1 < self.num_layers and self.training and self.dropout and isinstance(inputs, Tensor):
                inputs = nn.functional.dropout(inputs, self.dropout)
        if self.mode == "LSTM":
            return inputs, tuple(torch.cat(parts) for parts in zip(*states, strict=True))
        return inputs, torch.cat(states)

    def _state(self, hx: Any, number: int) -> Any:
        """The first states of one layer, of the (layers x directions, batch, hidden) given."""
        if hx is None:
            return None
        directions = 2 if self.bidirectional else 1
        rows = slice(number * directions, (number + 1) * directions)
        return tuple(part[rows] for part in hx) if self.mode == "LSTM" else hx[rows]


def input_parts(layer: nn.RNNBase) -> list[str]:
    """Names of the weights that read the input, (gates x hidden, inputs) each, one per direction."""
    return ["weight_ih_l0", *(["weight_ih_l0_reverse"] if layer.bidirectional else [])]


def split(stack: nn.RNNBase) -> Stack:
    """A stack of several layers as single ones of the same weights."""
    directions = ("", "_reverse") if stack.bidirectional else ("",)
    width = stack.hidden_size * len(directions)
    layers = []
    for number in range(stack.num_layers):
        layer = like(stack, stack.input_size if number == 0 else width)
        for name, parameter in layer.named_parameters():
            parameter.data.copy_(getattr(stack, name.replace("_l0", f"_l{number}")).data)
        layers.append(layer)
    return Stack(stack, layers)


def like(layer: nn.RNNBase, inputs: int) -> nn.RNNBase:
    """One layer with the geometry of `layer`, reading `inputs` features, its weights still to be set."""
    options: dict[str, Any] = {"nonlinearity": layer.nonlinearity} if isinstance(layer, nn.RNN) else {}
    kind: Any = next(k for k in (nn.LSTM, nn.GRU, nn.RNN) if isinstance(layer, k))
    fresh: nn.RNNBase = kind(
        inputs, layer.hidden_size, bias=layer.bias, batch_first=layer.batch_first, bidirectional=layer.bidirectional,
        **options,
    )  # fmt: skip
    return fresh.train(layer.training)
