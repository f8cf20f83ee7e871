"""Find the channel block of a runtime: the padding that it gives a convolution, or where its running time steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from automc.devices.device import Device, NodeTime

__all__ = ["asked_convs", "conv_model", "probe_blocks"]

_BLOCKS = (1, 4, 8, 16, 32)
_SIDE = 14
_WIDTH = 64
_EXTRA = (1, 2, 4, 8, 16)
_STAIRS = tuple(range(32, 65, 4))


def probe_blocks(device: Device, conv: Callable[[int, int], bytes] | None = None) -> tuple[int, int]:
    """(channel_block, channel_multiple) of a device.

    `conv` makes convolutions of (cin, cout) channels, all of them among `asked_convs`; None stands for `conv_model`.

    The padding of a 3x3 convolution with one output channel over a multiple of 32 shows in the shapes that the runtime reports; where it
    reports none, the block is the one whose staircase fits the times best. Input channels then stay on the blocked path
    when they are a multiple of `channel_multiple`.
    """
    conv = conv or conv_model
    block = _padding(_conv(device, conv(_WIDTH, 33), _WIDTH), 33)
    if block == 1:
        block = _staircase(device, conv)
        return block, block
    fast = [extra for extra in _EXTRA if extra <= block and _is_blocked(device, 2 * block + extra, block, conv)]
    return block, fast[0] if fast else block


def asked_convs() -> list[tuple[int, int]]:
    """The (cin, cout) of every convolution that `probe_blocks` may ask for."""
    blocked = [(2 * block + extra, block + 1) for block in _BLOCKS[1:] for extra in _EXTRA if extra <= block]
    return [(_WIDTH, 33), *((_WIDTH, width) for width in _STAIRS), *blocked]


def conv_model(cin: int, cout: int, side: int = _SIDE) -> bytes:
    """A serialized 3x3 convolution, cin -> cout channels on side x side positions, batch 1."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((cout, cin, 3, 3), dtype=np.float32)
    shapes = ("x", [1, cin, side, side]), ("y", [1, cout, side, side])
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes]
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "conv", infos[:1], infos[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _conv(device: Device, model: bytes, cin: int, repeats: int = 1) -> list[NodeTime]:
    return device.node_times(model, [np.ones((1, cin, _SIDE, _SIDE), np.float32)], repeats)


def _padding(nodes: list[NodeTime], cout: int) -> int:
    """The block that the runtime padded `cout` channels to, 1 where it reports none."""
    widths = [t.shape[1] for node in nodes for t in node.outputs if "Conv" in node.op and len(t.shape) == 4]
    padded = max(widths, default=cout)
    return next((block for block in _BLOCKS if -(-cout // block) * block == padded), 1)


def _is_blocked(device: Device, cin: int, block: int, conv: Callable[[int, int], bytes]) -> bool:
    """Whether a convolution of `cin` input channels still runs padded to the block."""
    return _padding(_conv(device, conv(cin, block + 1), cin), block + 1) == block


def _staircase(device: Device, conv: Callable[[int, int], bytes]) -> int:
    runs = [_conv(device, conv(_WIDTH, width), _WIDTH, 20) for width in _STAIRS]
    times = np.array([min(node.time_s for node in nodes if "Conv" in node.op) for nodes in runs])
    widths = np.array(_STAIRS)
    return min(_BLOCKS, key=lambda block: (_misfit(widths, times, block), block))


def _misfit(
    widths: np.ndarray[tuple[int], np.dtype[np.int64]], times: np.ndarray[tuple[int], np.dtype[np.float64]], block: int
) -> float:
    """Relative residual of times that grow with the padded width."""
    padded = -(-widths // block) * block
    design = np.stack([np.ones_like(times), padded.astype(np.float64)], axis=1) / times[:, None]
    solution, *_ = np.linalg.lstsq(design, np.ones_like(times), rcond=None)
    return float(np.round(np.sum((design @ solution - 1.0) ** 2), 4))
