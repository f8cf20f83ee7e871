"""Tiny networks, one per way in which channels can hang together."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm with statistics that are not trivial, ReLU."""
    norm = nn.BatchNorm2d(outputs)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias, 0.0, 0.2)
    nn.init.normal_(norm.running_mean, 0.0, 0.2)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, norm, nn.ReLU())


class Head(nn.Sequential):
    """Features (batch, channels, h, w) -> logits (batch, 5)."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def plain() -> nn.Module:
    """A chain of convolutions, the last flattened into the linear layer position by position."""
    features = nn.Sequential(conv(3, 16), conv(16, 24, stride=2), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(features, nn.Linear(24 * 4, 20), nn.ReLU(), nn.Linear(20, 5)).eval()


class Residual(nn.Module):
    """Two stages of one block; the wider stage's shortcut is a projection or pads channels with zeros."""

    def __init__(self, pad: bool) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.a1, self.a2 = conv(8, 12), conv(12, 8)
        self.b1, self.b2 = conv(8, 12, stride=2), conv(12, 16)
        self.shortcut = None if pad else conv(8, 16, kernel=1, stride=2)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.a2(self.a1(x)))
        side = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)) if self.shortcut is None else self.shortcut(x)
        return self.head(F.relu(side + self.b2(self.b1(x))))


class Dense(nn.Module):
    """Every layer reads the concatenation of all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv(3, 8), conv(8, 8), conv(16, 8)
        self.head = Head(24)

    def forward(self, x: Tensor) -> Tensor:
        one = self.first(x)
        two = self.second(one)
        return self.head(torch.cat([one, two, self.third(torch.cat([one, two], 1))], 1))


class Mobile(nn.Module):
    """Inverted bottleneck with a depthwise convolution and squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand, self.depthwise = conv(3, 8), conv(8, 24, 1), conv(24, 24, groups=24)
        self.squeeze, self.excite = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 24, 1)
        self.project = conv(24, 8, 1)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        hidden = self.depthwise(self.expand(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(hidden.mean((2, 3), keepdim=True)))))
        return self.head(x + self.project(hidden * gate))


class Shuffle(nn.Module):
    """Grouped convolution and channel shuffle with its channel count written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped, self.last = conv(3, 8), conv(8, 8, groups=2), conv(8, 8, 1)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.stem(x))
        batch, _, height, width = x.shape
        x = x.view(batch, 2, 4, height, width).transpose(1, 2).reshape(batch, 8, height, width)
        return self.head(self.last(x))


class Attention(nn.Module):
    """One transformer block over the patches of an image, heads written out."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.classify = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, tokens, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, 16)
        x = x + self.out(mixed)
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.classify(x.mean(1))


class Shared(nn.Module):
    """One convolution used twice, and a layer that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.unused = conv(3, 8), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(4, 4)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.twice(F.relu(self.twice(self.stem(x)))))


class Lists(nn.Module):
    """Layers in lists, nested lists and dictionaries, under names that exporters shorten to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv(3, 8), conv(8, 12)])
        self.blocks = nn.ModuleList([nn.ModuleList([conv(12, 12), conv(12, 8)]), nn.ModuleList([conv(8, 12)])])
        self.left = nn.ModuleDict({"conv": conv(12, 10), "conv_1": conv(10, 12), "a/b": conv(12, 8)})
        self.right = nn.ModuleDict({"conv": conv(8, 12), "layers": nn.ModuleList([conv(12, 14), conv(14, 16)])})
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        parts = [*self.layers, *self.blocks[0], *self.blocks[1], *self.left.values(), self.right["conv"]]
        for part in [*parts, *self.right["layers"]]:
            x = part(x)
        return self.head(x)


NETWORKS = {
    "plain": plain,
    "residual": lambda: Residual(pad=False).eval(),
    "padded": lambda: Residual(pad=True).eval(),
    "dense": lambda: Dense().eval(),
    "mobile": lambda: Mobile().eval(),
    "shuffle": lambda: Shuffle().eval(),
    "attention": lambda: Attention().eval(),
    "shared": lambda: Shared().eval(),
    "lists": lambda: Lists().eval(),
}


def make(name: str, seed: int = 0) -> nn.Module:
    """A network of NETWORKS with fixed random weights."""
    torch.manual_seed(seed)
    model: nn.Module = NETWORKS[name]()
    return model


def images(count: int, seed: int = 1, side: int = 12) -> Tensor:
    """(count, 3, side, side) smooth random images."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    return F.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=False)
