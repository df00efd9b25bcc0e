"""The network of the trained priors: a small U-Net that exports to ONNX, its vector-Jacobian product included.

No interpolation, no transposed convolution, no FFT operator. Shapes: (J, C, H, W), noise levels (J,), float32.
"""

from __future__ import annotations

import math

import torch
from torch import nn


def depth_to_space(x, factors):
    """(J, C f g, H, W) -> (J, C, H f, W g): the channels of a position become a patch of f x g pixels."""
    _, c, h, w = x.shape
    f, g = factors
    c = c // (f * g)
    return x.reshape(-1, c, f, g, h, w).permute(0, 1, 4, 2, 5, 3).reshape(-1, c, h * f, w * g)


class Convolution(nn.Module):
    """3 x 3 convolution that keeps the size, with zeros or the periodic continuation outside; 1 x 3 if ``flat``."""

    def __init__(self, inputs, outputs, circular, flat=False):
        super().__init__()
        self.circular = circular
        reach = (0, 1) if flat else (1, 1)
        self.axes = [axis for axis, n in zip((2, 3), reach) if n]
        self.conv = nn.Conv2d(inputs, outputs, tuple(2 * n + 1 for n in reach), padding=0 if circular else reach)

    def forward(self, x):
        if self.circular:  # by split and cat: their pullbacks need no scatter
            for axis in self.axes:
                first, middle, last = torch.split(x, [1, x.shape[axis] - 2, 1], dim=axis)
                x = torch.cat([last, first, middle, last, first], dim=axis)
        return self.conv(x)


class Block(nn.Module):
    """Residual block; the noise level scales and shifts the second normalisation."""

    def __init__(self, inputs, outputs, embedding, circular, flat=False):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, inputs), nn.GroupNorm(8, outputs)
        self.conv1 = Convolution(inputs, outputs, circular, flat)
        self.conv2 = Convolution(outputs, outputs, circular, flat)
        self.modulate = nn.Linear(embedding, 2 * outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv2.conv.weight)
        nn.init.zeros_(self.conv2.conv.bias)

    def forward(self, x, embedding):
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(nn.functional.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class Attention(nn.Module):
    """Single-head self-attention over all positions, residual."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x):
        _, c, h, w = x.shape
        # The pullback of Linear on three axes fixes the batch, that of chunk does not export: rows, and three layers.
        tokens = self.norm(x).reshape(-1, c, h * w).transpose(1, 2).reshape(-1, c)
        q, k, v = (layer(tokens).reshape(-1, h * w, c) for layer in (self.query, self.key, self.value))
        y = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(c), dim=-1) @ v
        return x + self.out(y.reshape(-1, c)).reshape(-1, h * w, c).transpose(1, 2).reshape(-1, c, h, w)


class UNet(nn.Module):
    """F(features, log-sigma): a U-Net on patches of the picture, or along the last axis of data with H = 1.

    features : input channels at full resolution; outputs : output channels; size : (H, W)
    patch : side of the disjoint patches that the first layer maps to channels and the last one back to pixels
    channels, blocks : per level, each at half the resolution of the one before; as many blocks down as up
    circular : periodic continuation instead of zeros
    position : add a learned map after the first layer, for data that are not invariant under shifts by a patch
    """

    def __init__(self, features, outputs, size, patch=4, channels=(32, 64, 128), blocks=(1, 1, 1), circular=False,
                 position=True, embedding=128):
        super().__init__()
        flat = size[0] == 1
        self.patches, self.halves = ((1, patch), (1, 2)) if flat else ((patch, patch), (2, 2))
        self.outputs = outputs
        self.register_buffer("frequencies", 1e4 ** (-torch.arange(16) / 16))
        self.embed = nn.Sequential(nn.Linear(32, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.first = nn.Conv2d(features, channels[0], self.patches, stride=self.patches)
        rows, columns = (n // p for n, p in zip(size, self.patches))
        area, quarter = math.prod(self.patches), math.prod(self.halves)
        self.position = nn.Parameter(torch.zeros(1, channels[0], rows, columns)) if position else None
        self.down, self.up, self.shrink, self.grow = (nn.ModuleList() for _ in range(4))
        for level, (c, n) in enumerate(zip(channels, blocks)):
            self.down.append(nn.ModuleList([Block(c, c, embedding, circular, flat) for _ in range(n)]))
            if level + 1 < len(channels):
                self.shrink.append(nn.Conv2d(c, channels[level + 1], self.halves, stride=self.halves))
                self.grow.append(nn.Conv2d(channels[level + 1], quarter * c, 1))
                self.up.append(nn.ModuleList([Block(2 * c if i == 0 else c, c, embedding, circular, flat)
                                              for i in range(n)]))
        self.attention = Attention(channels[-1])
        self.middle = Block(channels[-1], channels[-1], embedding, circular, flat)
        self.norm = nn.GroupNorm(8, channels[0])
        self.last = Convolution(channels[0], outputs * area, circular, flat)
        nn.init.zeros_(self.last.conv.weight)
        nn.init.zeros_(self.last.conv.bias)

    def forward(self, features, level):
        angle = 1000 * level[:, None] * self.frequencies
        embedding = self.embed(torch.cat([angle.sin(), angle.cos()], dim=1))
        h = self.first(features)
        if self.position is not None:
            h = h + self.position
        skips = []
        for i, down in enumerate(self.down):
            for block in down:
                h = block(h, embedding)
            if i < len(self.shrink):
                skips.append(h)
                h = self.shrink[i](h)
        h = self.middle(self.attention(h), embedding)
        for i in reversed(range(len(self.grow))):
            h = torch.cat([depth_to_space(self.grow[i](h), self.halves), skips[i]], dim=1)
            for block in self.up[i]:
                h = block(h, embedding)
        return depth_to_space(self.last(nn.functional.silu(self.norm(h))), self.patches)
