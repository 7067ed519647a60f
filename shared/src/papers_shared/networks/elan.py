"""ELAN: efficient long-range attention network (Zhang et al., arXiv 2203.06697).

The authors' weights are not at hand, so this form serves to compare parameters, operations and
latency; parameters agree with the paper's table.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers_shared.networks.carn import MeanShift


class ShiftConv2d(nn.Module):
    """A 1x1 convolution of channels moved by one pixel: a fifth each left, right, up, down, none.

    The shift is a frozen 3x3 filter a channel, and counted among the parameters as the paper does.

    Source: ELAN, section 3.2.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        taps = ((1, 2), (1, 0), (2, 1), (0, 1), (1, 1))
        masks = torch.zeros(inputs, 1, 3, 3)
        fifth = inputs // 5
        for i, (row, column) in enumerate(taps):
            last = inputs if i == len(taps) - 1 else (i + 1) * fifth
            masks[i * fifth : last, 0, row, column] = 1
        self.shift = nn.Parameter(masks, requires_grad=False)
        self.conv = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        return self.conv(F.conv2d(x, self.shift, padding=1, groups=x.shape[1]))


class GMSA(nn.Module):
    """Group-wise multi-scale self-attention: each third of the channels has its window size.

    Queries are keys; a further attention of the same block applies the maps it is given.

    Args:
        channels: of the block; 2/3 of it must be whole.
        windows: sides, one a group.
        shift: half a window, cyclic, without a mask.
        shares: whether the maps are given.

    Source: ELAN, section 3.3 and 3.4.
    """

    def __init__(
        self, channels: int, *, windows: tuple[int, ...], shift: bool, shares: bool
    ) -> None:
        super().__init__()
        if channels % len(windows):
            raise ValueError(f"{channels} channels do not divide among the windows {windows}")
        self.windows, self.shift, self.shares = windows, shift, shares
        inner = channels if shares else 2 * channels
        self.project_inp = nn.Sequential(nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner))
        self.project_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, maps: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """(B, C, H, W), sides multiples of all windows, and maps -> (the same shape, maps)."""
        if (maps is not None) != self.shares:
            raise ValueError("maps of attention are given to a sharing GMSA, and to no other")
        groups = self.project_inp(x).chunk(len(self.windows), dim=1)
        used, outputs = [], []
        for i, (group, w) in enumerate(zip(groups, self.windows, strict=True)):
            move = w // 2 if self.shift else 0
            moved = group.roll((-move, -move), dims=(2, 3)) if move else group
            tokens = _to_windows(moved, w)
            if maps is None:
                q, v = tokens.chunk(2, dim=-1)
                used.append((q @ q.transpose(1, 2)).softmax(dim=-1))
            else:
                v = tokens
                used.append(maps[i])
            out = _from_windows(used[-1] @ v, w, size=(x.shape[2], x.shape[3]))
            outputs.append(out.roll((move, move), dims=(2, 3)) if move else out)
        return self.project_out(torch.cat(outputs, dim=1)), used


def _to_windows(x: Tensor, w: int) -> Tensor:
    """(B, C, H, W) -> (B * windows, w * w, C)."""
    tiles = x.unflatten(3, (-1, w)).unflatten(2, (-1, w))  # (B, C, rows, w, columns, w)
    return tiles.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(0, 2)


def _from_windows(tokens: Tensor, w: int, *, size: tuple[int, int]) -> Tensor:
    """(B * windows, w * w, C) -> (B, C, H, W)."""
    rows, columns = size[0] // w, size[1] // w
    tiles = tokens.unflatten(1, (w, w)).unflatten(0, (-1, rows, columns))
    return tiles.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class ELAB(nn.Module):
    """Pairs of local features (two shift convolutions) and attention, maps shared.

    Source: ELAN, section 3.1, figure 2.
    """

    def __init__(
        self, channels: int, *, expansion: int, shares: int, windows: tuple[int, ...], shift: bool
    ) -> None:
        super().__init__()
        self.lfe = nn.ModuleList(
            nn.Sequential(
                ShiftConv2d(channels, expansion * channels),
                nn.ReLU(),
                ShiftConv2d(expansion * channels, channels),
            )
            for _ in range(shares + 1)
        )
        self.gmsa = nn.ModuleList(
            GMSA(channels, windows=windows, shift=shift, shares=i > 0) for i in range(shares + 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        maps: list[Tensor] | None = None
        for lfe, gmsa in zip(self.lfe, self.gmsa, strict=True):
            x = x + lfe(x)
            attended, maps = gmsa(x, maps)
            x = x + attended
        return x


class ELAN(nn.Module):
    """Head, blocks with alternating shift, tail. Takes and gives RGB in [0, 1]; ELAN-light.

    Args:
        scale: of the enlargement.
        channels: 60 in ELAN-light (180 in ELAN).
        sub_blocks: 24 in ELAN-light, 36 in ELAN.
        shares: further attentions of a block that use its maps.
        expansion: of the shift convolutions.
        windows: of the attention.

    Source: ELAN, sections 3.1 and 4.1.
    """

    def __init__(
        self,
        scale: int,
        *,
        channels: int = 60,
        sub_blocks: int = 24,
        shares: int = 1,
        expansion: int = 2,
        windows: tuple[int, ...] = (4, 8, 16),
    ) -> None:
        super().__init__()
        self.multiple = math.lcm(*windows)
        self.scale = scale
        self.sub_mean, self.add_mean = MeanShift(-1), MeanShift(1)
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential(
            *(
                ELAB(channels, expansion=expansion, shares=shares, windows=windows, shift=i % 2 > 0)
                for i in range(sub_blocks // (1 + shares))
            )
        )
        self.tail = nn.Sequential(
            nn.Conv2d(channels, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W), sides multiples of ``multiple`` -> (B, 3, scale * H, scale * W)."""
        features = self.head(self.sub_mean(x))
        return self.add_mean(self.tail(self.body(features) + features))
