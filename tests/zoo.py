"""Convolutional families in miniature: one network for each way of wiring channels that people train.

Weights are random, batch-norm statistics are not trivial (see `networks.conv`), and every network ends in a few logits unless it
segments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from networks import Dense, Head, Mobile, Residual, Shuffle, conv, images, plain
from torch import Tensor, nn
from torch.nn import functional as F


def vgg() -> nn.Module:
    """Stages of 3 x 3 convolutions with biases and max pooling, flattened into two hidden linear layers."""
    stages = [conv(3, 16), conv(16, 16), nn.MaxPool2d(2), conv(16, 24), conv(24, 24), nn.MaxPool2d(2)]
    head = [nn.Flatten(), nn.Linear(24 * 9, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 5)]
    return nn.Sequential(*stages, *head)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (in `groups` groups), 1 x 1, with squeeze-and-excitation where `gated`, added to the input."""

    def __init__(self, inputs: int, inner: int, outputs: int, groups: int = 1, gated: bool = False) -> None:
        super().__init__()
        self.reduce, self.middle = conv(inputs, inner, 1), conv(inner, inner, groups=groups)
        self.gate = Gate(inner, nn.ReLU(), nn.Sigmoid()) if gated else nn.Identity()
        self.expand, self.shortcut = conv(inner, outputs, 1)[:2], nn.Identity()
        if inputs != outputs:
            self.shortcut = conv(inputs, outputs, 1)[:2]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.expand(self.gate(self.middle(self.reduce(x)))) + self.shortcut(x))


class Gate(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, channels: int, activation: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)
        self.activation, self.gate = activation, gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.excite(self.activation(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))


def bottlenecks(groups: int = 1, gated: bool = False) -> nn.Module:
    """A stem and three bottlenecks in two stages."""
    blocks = [Bottleneck(16, 16, 32, groups, gated), Bottleneck(32, 16, 32, groups, gated)]
    return nn.Sequential(conv(3, 16), *blocks, Bottleneck(32, 24, 48, groups, gated), Head(48))


class DenseLayer(nn.Module):
    """Batch norm and ReLU before each convolution, and the input concatenated to the output."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = trained(nn.BatchNorm2d(inputs)), nn.Conv2d(inputs, 16, 1, bias=False)
        self.norm2, self.conv2 = trained(nn.BatchNorm2d(16)), nn.Conv2d(16, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat([x, new], 1)


def trained(norm: nn.Module) -> nn.Module:
    """A norm with parameters and statistics that are not trivial."""
    for tensor in norm.state_dict().values():
        if tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5)
    return norm


def densenet() -> nn.Module:
    """Two dense layers, a transition that halves, one dense layer."""
    transition = nn.Sequential(trained(nn.BatchNorm2d(32)), nn.ReLU(), nn.Conv2d(32, 16, 1), nn.AvgPool2d(2))
    layers = [DenseLayer(16, 8), DenseLayer(24, 8), transition, DenseLayer(16, 8)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *layers, trained(nn.BatchNorm2d(24)), nn.ReLU(), Head(24))


class Inception(nn.Module):
    """Four branches side by side, concatenated."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.one, self.three = conv(inputs, 8, 1), nn.Sequential(conv(inputs, 12, 1), conv(12, 16))
        self.five, self.pool = nn.Sequential(conv(inputs, 8, 1), conv(8, 8, 5)), conv(inputs, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(F.max_pool2d(x, 3, 1, 1))
        return torch.cat([self.one(x), self.three(x), self.five(x), pooled], 1)


class Inverted(nn.Module):
    """Inverted residual: expansion, depthwise, squeeze-and-excitation, linear projection (MobileNetV2, V3, EfficientNet)."""

    def __init__(self, channels: int, inner: int, kernel: int, activation: nn.Module, gate: nn.Module | None) -> None:
        super().__init__()
        self.expand, self.depthwise = conv(channels, inner, 1)[:2], conv(inner, inner, kernel, groups=inner)[:2]
        self.gate = Gate(inner, nn.ReLU(inplace=True), gate) if gate is not None else nn.Identity()
        self.project, self.activation = conv(inner, channels, 1)[:2], activation

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.depthwise(self.activation(self.expand(x))))
        return x + self.project(self.gate(hidden))


def inverted(activation: Callable[[], nn.Module], gate: nn.Module | None, kernel: int = 3) -> nn.Module:
    """A stem, two inverted residuals and a wide 1 x 1 before the classifier."""
    blocks = [Inverted(16, 32, kernel, activation(), gate), Inverted(16, 48, 3, activation(), gate)]
    return nn.Sequential(conv(3, 16, stride=2)[:2], activation(), *blocks, conv(16, 32, 1)[:2], activation(), Head(32))


class ShuffleUnit(nn.Module):
    """ShuffleNetV2: half of the channels pass by, the other half is convolved, and both are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(conv(half, half, 1), conv(half, half, groups=half)[:2], conv(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        x = torch.cat([left, self.branch(right)], 1)
        batch, channels, height, width = x.shape
        return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


def shufflenet() -> nn.Module:
    """A stem, two units, a 1 x 1 and the classifier."""
    return nn.Sequential(conv(3, 32, stride=2), ShuffleUnit(32), ShuffleUnit(32), conv(32, 24, 1), Head(24))


class ConvNext(nn.Module):
    """Depthwise 7 x 7, then channels last: layer norm, two linear layers, layer scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm, self.up, self.down = nn.LayerNorm(channels), nn.Linear(channels, 48), nn.Linear(48, channels)
        self.scale = nn.Parameter(torch.empty(channels, 1, 1).uniform_(0.5, 1.5))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.scale * self.down(F.gelu(self.up(hidden))).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    """A patchifying stem and two blocks."""
    return nn.Sequential(nn.Conv2d(3, 16, 2, 2), ConvNext(16), ConvNext(16), Head(16))


class UNet(nn.Module):
    """Two scales down and up, one up by a transposed convolution and one by interpolation, skips concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = conv(3, 8), conv(8, 16), conv(16, 24)
        self.up2, self.norm2 = nn.ConvTranspose2d(24, 16, 2, 2, bias=False), trained(nn.BatchNorm2d(16))
        self.merge2, self.merge1 = conv(32, 12), conv(20, 8)
        self.classify = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        bottom = self.bottom(F.max_pool2d(two, 2))
        two = self.merge2(torch.cat([two, F.relu(self.norm2(self.up2(bottom)))], 1))
        up = F.interpolate(two, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.classify(self.merge1(torch.cat([one, up], 1)))


class Keywords(nn.Module):
    """Sound (batch, 1, samples) -> 4 words: strided, depthwise and pointwise Conv1d throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 16, 9, 4, 4), trained(nn.BatchNorm1d(16)), nn.ReLU(inplace=True),
            nn.Conv1d(16, 16, 5, 2, 2, groups=16), trained(nn.BatchNorm1d(16)), nn.ReLU(inplace=True),
            nn.Conv1d(16, 24, 1), trained(nn.BatchNorm1d(24)), nn.ReLU(inplace=True),
            nn.Conv1d(24, 4, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean(2)


def sounds(count: int) -> Tensor:
    """(count, 1, 128) smooth random waves."""
    return F.interpolate(images(count)[:, 0].flatten(1)[:, None], size=128, mode="linear")


class Normalised(nn.Module):
    """A bottleneck whose norms normalise all channels, groups of four, and each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), trained(nn.GroupNorm(1, 16))
        self.reduce, self.fours = nn.Conv2d(16, 16, 1), trained(nn.GroupNorm(4, 16))
        self.middle, self.ones = nn.Conv2d(16, 12, 3, padding=1), trained(nn.GroupNorm(12, 12))
        self.expand, self.head = nn.Conv2d(12, 16, 1), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        inner = F.relu(self.ones(self.middle(F.relu(self.fours(self.reduce(x))))))
        return self.head(x + self.expand(inner))


def volumes() -> nn.Module:
    """Conv3d down and ConvTranspose3d up again."""
    down = [nn.Conv3d(1, 8, 3, 2, 1), trained(nn.InstanceNorm3d(8, affine=True)), nn.ReLU()]
    up = [nn.ConvTranspose3d(8, 12, 2, 2), trained(nn.BatchNorm3d(12)), nn.PReLU(12)]
    return nn.Sequential(*down, *up, nn.Conv3d(12, 2, 1), nn.AdaptiveAvgPool3d(2), nn.Flatten())


def clips(count: int) -> Tensor:
    """(count, 1, 6, 6, 6) smooth random volumes."""
    return F.interpolate(images(count)[:, :1, None], size=(6, 6, 6), mode="trilinear")


@dataclass(frozen=True)
class Family:
    """A network of the zoo and what an expert expects of it.

    Attributes:
        groups: channel group -> width, in channels or, where they only go together, in groups of channels.
        stays: layer whose output channels stay -> a part of the reason. The model's outputs stay in every network.
        plain: layer that is pruned but neither factorised nor quantised -> its class.
        inputs: (count,) -> a batch of inputs.
    """

    build: Callable[[], nn.Module]
    groups: dict[str, int]
    stays: dict[str, str] = field(default_factory=dict)
    plain: dict[str, str] = field(default_factory=dict)
    inputs: Callable[[int], Tensor] = images


_MOBILE_V3 = {"0.0": 16, "2.expand.0": 32, "2.gate.squeeze": 8, "3.expand.0": 48, "3.gate.squeeze": 8, "4.0": 32}
_RESNEXT = {"0.0": 16, "1.reduce.0": 4, "1.expand.0": 32, "2.reduce.0": 4, "3.reduce.0": 4, "3.expand.0": 48}

ZOO = {
    "plain": Family(plain, {"0.0.0": 16, "0.1.0": 24, "1": 20}),
    "vgg": Family(vgg, {"0.0": 16, "1.0": 16, "3.0": 24, "4.0": 24, "7": 32}),
    "resnet": Family(lambda: Residual(pad=False), {"stem.0": 8, "a1.0": 12, "b1.0": 12, "b2.0": 16}),
    "padded resnet": Family(
        lambda: Residual(pad=True), {"stem.0": 8, "a1.0": 12, "b1.0": 12}, {"b2.0": "a pad fills up with zeros"}
    ),
    "bottleneck resnet": Family(
        bottlenecks,
        {"0.0": 16, "1.reduce.0": 16, "1.middle.0": 16, "1.expand.0": 32, "2.reduce.0": 16, "2.middle.0": 16}
        | {"3.reduce.0": 24, "3.middle.0": 24, "3.expand.0": 48},
    ),
    "resnext": Family(lambda: bottlenecks(groups=4), _RESNEXT),
    "regnet": Family(lambda: bottlenecks(groups=4, gated=True), _RESNEXT | {f"{i}.gate.squeeze": 8 for i in (1, 2, 3)}),
    "group norm": Family(Normalised, {"reduce": 4, "middle": 12}, {"stem": "hang together"}),
    "dense": Family(Dense, {"first.0": 8, "second.0": 8, "third.0": 8}),
    "densenet": Family(
        densenet,
        {"0": 16, "1.conv1": 16, "1.conv2": 8, "2.conv1": 16, "2.conv2": 8, "3.2": 16, "4.conv1": 16, "4.conv2": 8},
    ),
    "inception": Family(
        lambda: nn.Sequential(conv(3, 16), Inception(16), Inception(40), Head(40)),
        {"0.0": 16}
        | {f"{i}.{branch}.0": 8 for i in (1, 2) for branch in ("one", "five.0", "five.1", "pool")}
        | {f"{i}.three.0.0": 12 for i in (1, 2)}
        | {f"{i}.three.1.0": 16 for i in (1, 2)},
    ),
    "squeeze": Family(Mobile, {"stem.0": 8, "expand.0": 24, "squeeze": 8}),
    "mobilenet v2": Family(
        lambda: inverted(nn.ReLU6, None), {"0.0": 16, "2.expand.0": 32, "3.expand.0": 48, "4.0": 32}
    ),
    "mobilenet v3": Family(lambda: inverted(nn.Hardswish, nn.Hardsigmoid(), 5), _MOBILE_V3),
    "efficientnet": Family(lambda: inverted(nn.SiLU, nn.Sigmoid()), _MOBILE_V3),
    "shufflenet v2": Family(
        shufflenet,
        {"1.branch.0.0": 16, "2.branch.0.0": 16, "3.0": 24},
        {
            "0.0": "through a reshape, a split and a transpose",
            "2.branch.2.0": "through a reshape, a split and a transpose",
        },
    ),
    "shuffled groups": Family(Shuffle, {"last.0": 8}, {"stem.0": "the model's code fails"}),
    "convnext": Family(convnext, {"1.up": 48, "2.up": 48}, {"0": "1.norm (LayerNorm) normalises them together"}),
    "u-net": Family(
        UNet,
        {"down1.0": 8, "down2.0": 16, "bottom.0": 24, "up2": 16, "merge2.0": 12, "merge1.0": 8},
        plain={"up2": "ConvTranspose2d"},
    ),
    "volumes": Family(
        volumes, {"0": 8, "3": 12}, plain={"0": "Conv3d", "3": "ConvTranspose3d", "6": "Conv3d"}, inputs=clips
    ),
    "keywords": Family(
        Keywords,
        {"layers.0": 16, "layers.6": 24},
        plain={f"layers.{i}": "Conv1d" for i in (0, 3, 6, 9)},
        inputs=sounds,
    ),
}


def make_family(name: str, seed: int = 0) -> nn.Module:
    """A network of ZOO in eval mode with fixed random weights."""
    torch.manual_seed(seed)
    return ZOO[name].build().eval()
