"""The Xception trunk of F3Net, run in steps so that two of them can exchange features."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn


class SeparableConv2d(nn.Module):
    """3x3 depthwise, then 1x1; no biases."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        return self.pointwise(self.conv1(x))


class Block(nn.Module):
    """Separable convolutions beside a skip.

    Args:
        inputs, outputs: channels.
        convs: separable convolutions.
        stride: 2 ends with max pooling.
        leading_relu: whether the first convolution is preceded by a ReLU.
        grow_first: whether the first convolution changes the width (else the last).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        convs: int,
        stride: int = 1,
        leading_relu: bool = True,
        grow_first: bool = True,
    ) -> None:
        super().__init__()
        self.skip: nn.Module | None = None
        self.skipbn: nn.Module | None = None
        if outputs != inputs or stride != 1:
            self.skip = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.skipbn = nn.BatchNorm2d(outputs)
        widths = [inputs] + [outputs if grow_first else inputs] * (convs - 1) + [outputs]
        parts: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            # Not in place: the skip sees the raw input.
            parts += [nn.ReLU(), SeparableConv2d(a, b), nn.BatchNorm2d(b)]
        if not leading_relu:
            parts = parts[1:]
        if stride != 1:
            parts.append(nn.MaxPool2d(3, stride=stride, padding=1))
        self.rep = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        skip = x if self.skip is None or self.skipbn is None else self.skipbn(self.skip(x))
        return self.rep(x) + skip


class Xception(nn.Module):
    """The trunk up to its last features.

    Args:
        channels: of the input.
        stride: of the first convolution.
    """

    def __init__(self, channels: int = 3, *, stride: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, 3, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.block1 = Block(64, 128, convs=2, stride=2, leading_relu=False)
        self.block2 = Block(128, 256, convs=2, stride=2)
        self.block3 = Block(256, 728, convs=2, stride=2)
        for number in range(4, 12):
            self.add_module(f"block{number}", Block(728, 728, convs=3))
        self.block12 = Block(728, 1024, convs=2, stride=2, grow_first=False)
        self.conv3 = SeparableConv2d(1024, 1536)
        self.bn3 = nn.BatchNorm2d(1536)
        self.conv4 = SeparableConv2d(1536, 2048)
        self.bn4 = nn.BatchNorm2d(2048)

    def stem(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, 64, h, w)."""
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)))

    def blocks(self, x: Tensor, first: int, last: int) -> Tensor:
        """Blocks ``first`` to ``last``, both included."""
        for number in range(first, last + 1):
            x = self.get_submodule(f"block{number}")(x)
        return x

    def tail(self, x: Tensor) -> Tensor:
        """(B, 1024, h, w) -> (B, 2048, h, w), before ReLU and pooling."""
        x = F.relu(self.bn3(self.conv3(x)))
        return self.bn4(self.conv4(x))
