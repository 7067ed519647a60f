"""TAEF2: a tiny autoencoder of 32 latent channels at an eighth of the size (FLUX.2's latents).

A round trip through it leaves the traces of a latent decoder, without any sampling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from papers_shared import assets
from papers_shared.checkpoints import load_state_dict, load_strict

WIDTH, LATENT = 64, 32


class Block(nn.Module):
    """Three 3x3 convolutions beside a skip; ``pool`` adds a normalised 1x1 branch first."""

    def __init__(self, *, pool: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU()]
        self.conv = nn.Sequential(*layers[:-1])
        self.pool: nn.Module | None = None
        if pool:
            self.pool = nn.Sequential(
                nn.Conv2d(WIDTH, 4 * WIDTH, 1, bias=False),
                nn.GroupNorm(4, 4 * WIDTH),
                nn.ReLU(),
                nn.Conv2d(4 * WIDTH, WIDTH, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 64, H, W) -> the same."""
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Bounded(nn.Module):
    """``3 tanh(x / 3)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same, within (-3, 3)."""
        return 3 * torch.tanh(x / 3)


def _conv(inputs: int, outputs: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


def encoder() -> nn.Sequential:
    """(B, 3, H, W) in [0, 1] -> latents (B, 32, H / 8, W / 8); fresh weights."""
    parts: list[nn.Module] = [_conv(3, WIDTH), Block()]
    for pool in (False, False, True):
        parts += [_conv(WIDTH, WIDTH, stride=2, bias=False), *(Block(pool=pool) for _ in range(3))]
    return nn.Sequential(*parts, _conv(WIDTH, LATENT))


def decoder() -> nn.Sequential:
    """Latents (B, 32, h, w) -> (B, 3, 8 h, 8 w), to be clamped to [0, 1]; fresh weights."""
    parts: list[nn.Module] = [Bounded(), _conv(LATENT, WIDTH), nn.ReLU()]
    for pool in (True, False, False):
        parts += [Block(pool=pool) for _ in range(3)]
        parts += [nn.Upsample(scale_factor=2), _conv(WIDTH, WIDTH, bias=False)]
    return nn.Sequential(*parts, Block(), _conv(WIDTH, 3))


def load() -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder with the published weights, in eval mode.

    Raises:
        FileNotFoundError: the weights are not on this machine; says where they are had.
    """
    out = []
    for name, network in (("taef2_encoder", encoder()), ("taef2_decoder", decoder())):
        state = load_state_dict(assets.fetch(name).path)
        load_strict(network, {k: v.float() for k, v in state.items()}, what=name)
        out.append(network.eval().requires_grad_(False))
    return out[0], out[1]
