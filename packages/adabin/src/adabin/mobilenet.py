"""AdaBin-A: ReActNet-A, the binary MobileNetV1, with AdaBin's convolutions in place of its own.

Every block is a binary 3x3 and a binary 1x1 convolution with a shortcut each; where the channels
double, two 1x1 convolutions stand side by side. The nonlinearity is ReActNet's: a PReLU between
two learned shifts.

Source: ReActNet's description; the authors report AdaBin-A but released no code of it, so which
nonlinearity and which parameters it has beyond the binary layers is not known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adabin.layers import AdaBinConv2d

if TYPE_CHECKING:
    from adabin.model import Config

# (output channels, stride) of the blocks behind the stem of 32 channels
BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)),
    *((512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)),
)


class ShiftedPReLU(nn.Module):
    """``prelu(x + a) + b`` with learned slope and shifts per channel (ReActNet's RPReLU)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift_in = nn.Parameter(torch.zeros(channels))
        self.prelu = nn.PReLU(channels)
        self.shift_out = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(x + self.shift_in[:, None, None])
        return x + self.shift_out[:, None, None]


class MobileBlock(nn.Module):
    """Binary 3x3 (stride) and binary 1x1, each with batch norm, shortcut and nonlinearity."""

    def __init__(self, config: Config, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        options = config.layer_options
        self.stride = stride
        self.conv3x3 = AdaBinConv2d(inputs, inputs, 3, stride=stride, padding=1, **options)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.nonlinear1 = ShiftedPReLU(inputs)
        branches = outputs // inputs
        self.conv1x1 = nn.ModuleList(
            AdaBinConv2d(inputs, inputs, 1, **options) for _ in range(branches)
        )
        self.bn2 = nn.ModuleList(nn.BatchNorm2d(inputs) for _ in range(branches))
        self.nonlinear2 = ShiftedPReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        skip = F.avg_pool2d(x, 2) if self.stride == 2 else x
        x = self.nonlinear1(self.bn1(self.conv3x3(x)) + skip)
        branches = [norm(conv(x)) + x for conv, norm in zip(self.conv1x1, self.bn2, strict=True)]
        return self.nonlinear2(torch.cat(branches, dim=1))


class ImageNetMobileNet(nn.Module):
    """AdaBin-A for pictures whose sides are multiples of 32."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.blocks = nn.Sequential()
        inputs = 32
        for outputs, stride in BLOCKS:
            self.blocks.append(MobileBlock(config, inputs, outputs, stride))
            inputs = outputs
        self.fc = nn.Linear(inputs, config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W), normalised with ImageNet's mean and std -> logits (B, classes).

        Raises:
            ValueError: a side is no multiple of 32.
        """
        if x.shape[-2] % 32 or x.shape[-1] % 32:
            raise ValueError(f"the sides must be multiples of 32, got {tuple(x.shape[-2:])}")
        x = self.blocks(self.bn1(self.conv1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
