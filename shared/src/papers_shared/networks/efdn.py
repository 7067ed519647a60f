"""EFDN: edge-enhanced feature distillation network (Wang, CVPRW 2022), re-parameterised form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from papers_shared.networks.attention import ESA


class _ConvPReLU(nn.Module):
    """A convolution under the name that the released file gives it, and a PReLU a channel."""

    def __init__(self, name: str, conv: nn.Conv2d) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, conv)
        self.act = nn.PReLU(conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.get_submodule(self.name)(x))


class EFDB(nn.Module):
    """Three convolutions; half of the channels of each stage go to a joint 1x1 and ESA.

    Source: EFDN, section 3.1; deployed, the edge-enhanced branches are merged into one 3x3.
    """

    def __init__(self, channels: int, *, esa_features: int = 12) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = _ConvPReLU("conv1x1", nn.Conv2d(channels, channels, 1))
        self.conv2 = _ConvPReLU("rep_conv", nn.Conv2d(channels, channels, 3, padding=1))
        self.conv3 = _ConvPReLU("rep_conv", nn.Conv2d(channels, channels, 3, padding=1))
        self.branch = nn.ModuleList(nn.Conv2d(channels, half, 1) for _ in range(4))
        self.fuse = nn.Conv2d(4 * half, channels, 1)
        self.att = ESA(channels, esa_features)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        stages = [x]
        for conv in (self.conv1, self.conv2, self.conv3):
            stages.append(conv(stages[-1]))
        halves = [branch(s) for branch, s in zip(self.branch, stages, strict=True)]
        return self.att(self.fuse(torch.cat(halves, dim=1))) + x


class EFDN(nn.Module):
    """Four EFDBs; the output of the second joins those after it too. RGB in [0, 1].

    Source: EFDN, section 3.1; that the joins take the second block's output is the wiring with
        which the released weights reach their PSNR.
    """

    def __init__(self, scale: int = 4, channels: int = 48) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.cells = nn.ModuleList(EFDB(channels) for _ in range(4))
        self.local_fuse = nn.ModuleList(nn.Conv2d(2 * channels, channels, 1) for _ in range(3))
        self.tail = nn.Sequential(
            nn.Conv2d(channels, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, scale * H, scale * W)."""
        features = self.head(x)
        first = self.cells[0](features)
        second = self.cells[1](first)
        out = self.local_fuse[0](torch.cat([first, second], dim=1))
        for cell, fuse in zip(self.cells[2:], self.local_fuse[1:], strict=True):
            out = fuse(torch.cat([second, cell(out)], dim=1))
        return self.tail(out + features)
