"""What ResShift's Swin-UNet and DiT-SR have in common around their stages."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers_shared.diffusion.swin import SwinStage

if TYPE_CHECKING:
    from papers_shared.diffusion.swin_unet import UNetConfig


def timestep_embedding(timesteps: Tensor, dim: int, *, max_period: float = 10000.0) -> Tensor:
    """Sinusoids of the raw step index: [cos(t f), sin(t f)], f_i = max_period^(-i / (dim/2)).

    Args:
        timesteps: (B,), integer indices 0 .. T-1, not rescaled.
        dim: even.

    Returns:
        float32 (B, dim).
    """
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    frequencies = torch.exp(-math.log(max_period) * steps / half)
    angles = timesteps[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def time_mlp(channels: int) -> nn.Sequential:
    """Linear, SiLU, Linear: (B, C) -> (B, 4 C)."""
    return nn.Sequential(
        nn.Linear(channels, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 4 * channels)
    )


class Downsample(nn.Module):
    """3x3 convolution with stride 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Nearest neighbour x2, then a 3x3 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Norm32(nn.GroupNorm):
    """GroupNorm that computes in float32, whatever the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


def condition_extractor(
    *, image_size: int, lq_size: int, lq_channels: int, cond_mask: bool
) -> tuple[nn.Module, int]:
    """Brings the low-quality picture to the latent's size; returns it and its output channels.

    log2(lq_size / image_size) rounds of 3x3 convolution, SiLU, 3x3 convolution with stride 2.

    Raises:
        ValueError: the ratio of the sizes is no power of two, or a latent is to be shrunk.

    Source: dit_sr sheet 3.2, step 2.
    """
    channels = lq_channels + cond_mask
    if lq_size == image_size:
        return nn.Identity(), channels
    if lq_channels != 3:
        raise ValueError(f"a condition of {lq_channels} channels is a latent, of its size already")
    rounds = round(math.log2(lq_size / image_size)) if lq_size > image_size else 0
    if image_size << rounds != lq_size:
        raise ValueError(f"lq_size {lq_size} is no power of two times image_size {image_size}")
    layers: list[nn.Module] = []
    width = 16
    for _ in range(rounds):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.SiLU()]
        layers.append(Downsample(width, 2 * width))
        channels, width = 2 * width, 2 * width
    return nn.Sequential(*layers), channels


class ConditionalUNet(nn.Module):
    """Encoder, middle and decoder that a subclass fills, with everything around them.

    A subclass fills ``input_blocks``, ``middle_block`` and ``output_blocks`` with ``Entry``.

    Args:
        config: sizes and widths.

    Attributes:
        architecture: the configuration.
        alignment: height and width of a latent have to be multiples of this.

    Raises:
        ValueError: the configuration contradicts itself.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        if config.lq_channels not in (3, config.in_channels):
            raise ValueError(
                f"lq_channels has to be 3 (a picture) or {config.in_channels} (its latent), "
                f"got {config.lq_channels}"
            )
        self.architecture = config
        self.model_channels, self.alignment = config.model_channels, config.alignment
        self.cond_mask = config.cond_mask
        self.lq_ratio = config.lq_size // config.image_size
        width = config.widths[0]
        self.time_embed = time_mlp(config.model_channels)
        self.feature_extractor, channels = condition_extractor(
            image_size=config.image_size,
            lq_size=config.lq_size,
            lq_channels=config.lq_channels,
            cond_mask=config.cond_mask,
        )
        first = nn.Conv2d(config.in_channels + channels, width, 3, padding=1)
        self.input_blocks = nn.ModuleList([Entry(first)])
        self.middle_block: nn.Module = Entry()
        self.output_blocks = nn.ModuleList()
        self.out = nn.Sequential(
            Norm32(config.norm_groups, width),
            nn.SiLU(),
            nn.Conv2d(width, config.out_channels, 3, padding=1),
        )

    def encode(
        self, x: Tensor, timesteps: Tensor, lq: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Time embedding, output of the middle, and the outputs of all encoder entries.

        Arguments as of ``forward``.
        """
        self._check(x, lq, mask)
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(x.dtype))
        condition = lq if mask is None else torch.cat([lq, mask], dim=1)
        h = torch.cat([x, self.feature_extractor(condition.to(x.dtype))], dim=1)
        h = h.contiguous(memory_format=torch.channels_last)
        skips = []
        for entry in self.input_blocks:
            h = entry(h, emb)
            skips.append(h)
        return emb, self.middle_block(h, emb), skips

    def forward(
        self, x: Tensor, timesteps: Tensor, lq: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Predict the clean latent.

        Args:
            x: noisy latent (B, in_channels, h, w), divided by its standard deviation.
            timesteps: (B,), step indices 0 .. T-1.
            lq: low-quality picture (B, 3, h r, w r) in [-1, 1], r = lq_size / image_size; or z_y
                (B, lq_channels, h, w), see ``UNetConfig.lq_channels``.
            mask: (B, 1, h r, w r), only for networks with ``cond_mask``.

        Returns:
            (B, out_channels, h, w).

        Raises:
            ValueError: sizes do not fit each other or the network's alignment.
        """
        emb, h, skips = self.encode(x, timesteps, lq, mask)
        for entry in self.output_blocks:
            h = entry(torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(h)

    def _check(self, x: Tensor, lq: Tensor, mask: Tensor | None) -> None:
        if any(side % self.alignment for side in x.shape[2:]):
            raise ValueError(
                f"a latent of {tuple(x.shape[2:])} does not divide into this network's windows and "
                f"levels; pad it to multiples of {self.alignment}"
            )
        expected = [self.lq_ratio * side for side in x.shape[2:]]
        if list(lq.shape[2:]) != expected:
            raise ValueError(
                f"a latent of {tuple(x.shape[2:])} needs lq of {tuple(expected)} pixels, "
                f"got {tuple(lq.shape[2:])}"
            )
        if (mask is not None) != self.cond_mask:
            state = "needs a mask (inpainting)" if self.cond_mask else "takes no mask"
            raise ValueError(f"this network {state}")


class Entry(nn.Sequential):
    """One entry of encoder or decoder; each part gets the time embedding if it takes it."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for part in self:
            x = part(x, emb) if isinstance(part, TimeConditioned | SwinStage) else part(x)
        return x


class TimeConditioned(nn.Module):
    """Marks modules whose forward takes (x, emb): ``Entry`` hands them the time embedding."""
