"""Between pictures and latents: one interface over the autoencoders of the diffusion papers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from papers_shared.training.seeds import seed_from


def latent_factor(vae: Any) -> int:
    """Picture pixels a latent pixel, along one side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def encode(vae: Any, images: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> latents (B, C, H / f, W / f), scaled, not quantised."""
    return vae.encode(images.to(vae.dtype)).latents * vae.config.scaling_factor


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Latents -> (B, 3, H, W), not clamped; a VQ autoencoder quantises first."""
    return vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample


def enlarge(lq: Tensor, scale: int) -> Tensor:
    """Bicubic, without antialiasing: what becomes z_y. (B, 3, h, w) -> (B, 3, h s, w s)."""
    return lq if scale == 1 else F.interpolate(lq, scale_factor=scale, mode="bicubic")


def condition_of(config: Any, lq: Tensor, z_y: Tensor) -> Tensor:
    """What a network of this configuration is conditioned on; see ``UNetConfig.lq_channels``."""
    return lq if config.lq_channels == 3 else z_y


class NoiseField:
    """Standard normal noise over a plane of any size, a function of seed, step and position.

    Overlapping tiles see the same noise where they overlap, whatever the size of the tiles, and
    nothing of the plane's size is held in memory: noise is made in square blocks.

    Args:
        seed: of everything.
        channels: of the latent.
        block: side of a block.
    """

    def __init__(self, seed: int, *, channels: int, block: int = 64) -> None:
        self.seed, self.channels, self.block = seed, channels, block

    def window(self, step: int, top: int, left: int, height: int, width: int) -> Tensor:
        """(channels, height, width) of the plane of one step, from (top, left) on."""
        b = self.block
        rows = range(top // b, (top + height - 1) // b + 1)
        columns = range(left // b, (left + width - 1) // b + 1)
        plane = torch.cat(
            [torch.cat([self._block(step, r, c) for c in columns], dim=2) for r in rows], dim=1
        )
        first_row, first_column = top - rows[0] * b, left - columns[0] * b
        return plane[:, first_row : first_row + height, first_column : first_column + width]

    def windows(
        self, step: int, corners: Sequence[tuple[int, int]], height: int, width: int
    ) -> Tensor:
        """(N, channels, height, width) for N corners (top, left)."""
        return torch.stack([self.window(step, *c, height, width) for c in corners])

    def _block(self, step: int, row: int, column: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_from(self.seed, step, row, column))
        return torch.randn(self.channels, self.block, self.block, generator=generator)
