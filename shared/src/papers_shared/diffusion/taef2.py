"""TAEF2, a tiny autoencoder of 32 channels at an eighth of the side (FLUX.2's latent space).

Diffusers' ``AutoencoderTiny`` cannot take its files: it has no pool branch.

Source: madebyollin/taesd (MIT); the layer lists as described beside the weights.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from papers_shared import assets
from papers_shared.checkpoints import load_state_dict, load_strict

SPREAD = 0.84  # standard deviation of its latents
WIDTH = 64


class _Block(nn.Module):
    def __init__(self, *, pool: bool = False) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(3)]
        first, second, third = convolutions
        self.conv = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        if pool:
            self.pool = nn.Sequential(
                nn.Conv2d(WIDTH, 4 * WIDTH, 1, bias=False),
                nn.GroupNorm(4, 4 * WIDTH),
                nn.ReLU(),
                nn.Conv2d(4 * WIDTH, WIDTH, 1, bias=False),
            )
        self.pooled = pool

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pool(x) if self.pooled else x
        return (self.conv(x) + x).relu()


class _Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


def _blocks(count: int = 3, *, pool: bool = False) -> list[nn.Module]:
    return [_Block(pool=pool) for _ in range(count)]


def _encoder(channels: int) -> nn.Sequential:
    def down() -> nn.Module:
        return nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, bias=False)

    first, last = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, channels, 3, padding=1)
    low = _blocks(pool=True)
    return nn.Sequential(
        *(first, *_blocks(1), down(), *_blocks(), down(), *_blocks(), down(), *low, last)
    )


def _decoder(channels: int) -> nn.Sequential:
    def up() -> list[nn.Module]:
        return [nn.Upsample(scale_factor=2), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)]

    start = [_Clamp(), nn.Conv2d(channels, WIDTH, 3, padding=1), nn.ReLU()]
    return nn.Sequential(
        *(*start, *_blocks(pool=True), *up(), *_blocks(), *up(), *_blocks(), *up()),
        *(*_blocks(1), nn.Conv2d(WIDTH, 3, 3, padding=1)),
    )


class TAEF2(ModelMixin, ConfigMixin):
    """The autoencoder with the calls of diffusers' ``AutoencoderKL`` that sampling needs.

    Args:
        latent_channels: of the latents.
        scaling_factor: latents times it have a spread of 1.
    """

    @register_to_config
    def __init__(self, latent_channels: int = 32, scaling_factor: float = 1 / SPREAD) -> None:
        super().__init__()
        self.encoder, self.decoder = _encoder(latent_channels), _decoder(latent_channels)

    def encode(self, x: Tensor) -> SimpleNamespace:
        """(B, 3, H, W) in [-1, 1] to ``latents`` (B, 32, H / 8, W / 8), not scaled."""
        return SimpleNamespace(latents=self.encoder(x / 2 + 0.5))

    def decode(self, z: Tensor) -> SimpleNamespace:
        """(B, 32, h, w), not scaled, to ``sample`` (B, 3, 8 h, 8 w) in [-1, 1]."""
        return SimpleNamespace(sample=2 * self.decoder(z).clamp(0, 1) - 1)


def load_taef2() -> TAEF2:
    """The released autoencoder in eval mode, its files found by name and verified by checksum.

    Raises:
        FileNotFoundError: the files are nowhere; the message says how to get them.
    """
    model = TAEF2()
    for part in ("encoder", "decoder"):
        state = load_state_dict(assets.fetch(f"taef2_{part}").path)
        whole = {name: value.float() for name, value in state.items()}
        load_strict(model.get_submodule(part), whole, what=f"taef2_{part}")
    return model.eval().requires_grad_(False)
