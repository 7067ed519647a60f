"""IMDN: information multi-distillation network (Hui et al., arXiv 1909.11856), baseline form.

This is the baseline of the efficient super-resolution challenges (NTIRE 2022): no attention, a
residual around the body, eight blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class IMDModule(nn.Module):
    """Four convolutions; after each of the first three, 16 channels are set aside.

    Source: IMDN, section 3.2, without the contrast-aware attention.
    """

    DISTILLED = 16

    def __init__(self, channels: int) -> None:
        super().__init__()
        rest = channels - self.DISTILLED
        for i, inputs in enumerate((channels, rest, rest), start=1):
            conv = nn.Conv2d(inputs, channels, 3, padding=1)
            self.add_module(f"conv{i}", nn.Sequential(conv, nn.LeakyReLU(0.05)))
        self.conv4 = nn.Conv2d(rest, self.DISTILLED, 3, padding=1)
        self.conv1x1 = nn.Conv2d(4 * self.DISTILLED, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        rest, parts = x, []
        for i in range(1, 4):
            y = self.get_submodule(f"conv{i}")(rest)
            part, rest = y[:, : self.DISTILLED], y[:, self.DISTILLED :]
            parts.append(part)
        parts.append(self.conv4(rest))
        return x + self.conv1x1(torch.cat(parts, dim=1))


class _Residual(nn.Module):
    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.sub = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sub(x)


class IMDN(nn.Module):
    """The challenge baseline. Takes and gives RGB in [0, 1].

    Source: NTIRE 2022 challenge on efficient super-resolution (arXiv 2205.05675), baseline.
    """

    def __init__(self, scale: int = 4, *, channels: int = 64, blocks: int = 8) -> None:
        super().__init__()
        body = [IMDModule(channels) for _ in range(blocks)]
        self.model = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1),
            _Residual(*body, nn.Conv2d(channels, channels, 3, padding=1)),
            nn.Conv2d(channels, 3 * scale**2, 3, padding=1),
            nn.PixelShuffle(scale),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, scale * H, scale * W)."""
        return self.model(x)
