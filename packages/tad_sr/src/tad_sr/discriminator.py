"""The time-aware discriminator, which judges a frozen denoiser's features given the noise level.

Parameters have the authors' names and shapes. Source: tad_sr sheet 3.2; the heads are those of
StyleGAN-T (Sauer et al., ICML 2023) with group norms and without a text.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers_shared.diffusion.unet_parts import Norm32, timestep_embedding
from tad_sr.model import Config

EPSILON = 1e-12  # of the vectors' lengths


class SNConv1d(nn.Module):
    """Conv1d with circular padding, its weight divided by its largest singular value.

    One step of power iteration in every forward pass in training mode: v <- W^T u / |W^T u|,
    u <- W v / |W v|; then sigma = u^T W v, with u and v constant. In eval mode u and v stay.
    Entries are named as ``torch.nn.utils.spectral_norm`` names them; unlike there, a network can be
    copied after it ran, and several passes can wait for their backward.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, inputs: int, outputs: int, kernel_size: int) -> None:
        super().__init__()
        conv = nn.Conv1d(inputs, outputs, kernel_size)
        assert conv.bias is not None
        self.bias, self.weight_orig = conv.bias, conv.weight
        self.padding = kernel_size // 2
        rows, columns = outputs, inputs * kernel_size
        self.register_buffer("weight_u", F.normalize(torch.randn(rows), dim=0, eps=EPSILON))
        self.register_buffer("weight_v", F.normalize(torch.randn(columns), dim=0, eps=EPSILON))

    def weight(self) -> Tensor:
        """(outputs, inputs, kernel_size), normalised."""
        matrix = self.weight_orig.flatten(1)
        with _full_precision(matrix.device.type):
            with torch.no_grad():
                if self.training:
                    v = F.normalize(matrix.T @ self.weight_u, dim=0, eps=EPSILON)
                    self.weight_v.copy_(v)
                    self.weight_u.copy_(F.normalize(matrix @ v, dim=0, eps=EPSILON))
                # The buffers change in the next pass, before this one's backward.
                u, v = self.weight_u.clone(), self.weight_v.clone()
            return self.weight_orig / torch.dot(u, matrix @ v)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, L) -> (B, outputs, L)."""
        if self.padding:
            x = F.pad(x, (self.padding, self.padding), mode="circular")
        return F.conv1d(x, self.weight(), self.bias)


def _full_precision(device_type: str) -> contextlib.AbstractContextManager[Any]:
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def _block(channels: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(
        SNConv1d(channels, channels, kernel_size), nn.GroupNorm(4, channels), nn.LeakyReLU(0.2)
    )


class ResidualBlock(nn.Module):
    """(f(x) + x) / sqrt(2)."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return (self.fn(x) + x) / math.sqrt(2)


class Head(nn.Module):
    """(B, C, L) -> logits (B, c_dim, L)."""

    def __init__(self, channels: int, c_dim: int) -> None:
        super().__init__()
        self.main = nn.Sequential(_block(channels, 1), ResidualBlock(_block(channels, 9)))
        self.cls = SNConv1d(channels, c_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.cls(self.main(x))


class ProjectedDiscriminator(nn.Module):
    """Logits of a list of feature maps, conditioned on the noise level.

    For each map: group norm, scaled and shifted by the time embedding, SiLU, 3x3 convolution
    (zero at the start: then no gradient reaches the student), flattened, head.

    Args:
        c_dim: logits a position.
        embed_dim: of the sinusoids of the step index, and the unit of the maps' widths.
        multipliers: width of each map in units of ``embed_dim``.
        norm_groups: of the norm before the head.
        time_aware: False: without the time embedding, the ablation's "vanilla discriminator".

    Raises:
        ValueError: a width does not divide into groups.
    """

    def __init__(
        self,
        c_dim: int = 64,
        embed_dim: int = 160,
        multipliers: Sequence[int] = (1, 2, 2, 4, 4),
        *,
        norm_groups: int = 32,
        time_aware: bool = True,
    ) -> None:
        super().__init__()
        self.embed_dim, self.widths = embed_dim, [embed_dim * m for m in multipliers]
        self.time_aware = time_aware
        if any(width % norm_groups or width % 4 for width in self.widths):
            raise ValueError(
                f"widths {self.widths} have to be multiples of 4 and of norm_groups {norm_groups}"
            )
        self.heads = nn.ModuleList([Head(width, c_dim) for width in self.widths])
        self.emb_layers = nn.ModuleList(
            [
                nn.Sequential(nn.SiLU(), nn.Linear(embed_dim, 2 * width))
                for width in (self.widths if time_aware else ())
            ]
        )
        self.out_layers = nn.ModuleList([_entry(width, norm_groups) for width in self.widths])

    def forward(self, features: Sequence[Tensor], timesteps: Tensor) -> list[Tensor]:
        """Judge.

        Args:
            features: maps (B, C_k, H_k, W_k).
            timesteps: (B,), the step of the noise in what the features are of.

        Returns:
            logits (B, c_dim H_k W_k) for each map.

        Raises:
            ValueError: the maps' number or widths are others.
        """
        given = [feature.shape[1] for feature in features]
        if given != self.widths:
            raise ValueError(f"expected features with {self.widths} channels, got {given}")
        embedding = timestep_embedding(timesteps, self.embed_dim)
        logits = []
        for k, feature in enumerate(features):
            norm, rest = self.out_layers[k][0], self.out_layers[k][1:]  # type: ignore[index]
            h = norm(feature)
            if self.time_aware:
                time = self.emb_layers[k](embedding.to(feature.dtype))[:, :, None, None]
                scale, shift = time.chunk(2, dim=1)
                h = h * (1 + scale) + shift
            logits.append(self.heads[k](rest(h).flatten(2)).flatten(1))
        return logits


def _entry(width: int, norm_groups: int) -> nn.Sequential:
    last = nn.Conv2d(width, width, 3, padding=1)
    nn.init.zeros_(last.weight)
    assert last.bias is not None
    nn.init.zeros_(last.bias)
    # The place of the authors' Dropout(0) is kept: names count.
    return nn.Sequential(Norm32(norm_groups, width), nn.SiLU(), nn.Identity(), last)


class TimeAwareDiscriminator(ProjectedDiscriminator):
    """The discriminator of the SeeSR variant: four maps of Stable Diffusion's encoder.

    Source: tad_sr sheet 3.3.
    """

    def __init__(
        self,
        c_dim: int = 320,
        embed_dim: int = 320,
        multipliers: Sequence[int] = (1, 2, 4, 4),
        *,
        norm_groups: int = 32,
        time_aware: bool = True,
    ) -> None:
        super().__init__(
            c_dim, embed_dim, multipliers, norm_groups=norm_groups, time_aware=time_aware
        )


class MultipleDiscriminators(nn.Module):
    """One discriminator without time embedding for each noise level: the ablation.

    In a step only the drawn levels' parameters get gradients.

    Args:
        steps: noise levels.
        options: arguments of ``ProjectedDiscriminator``.

    Source: tad_sr sheet 6, table 1, and 9 (the arrangement is inferred).
    """

    def __init__(self, steps: int, **options: Any) -> None:
        super().__init__()
        levels = [ProjectedDiscriminator(**options, time_aware=False) for _ in range(steps)]
        self.levels = nn.ModuleList(levels)

    def forward(self, features: Sequence[Tensor], timesteps: Tensor) -> list[Tensor]:
        """As ``ProjectedDiscriminator.forward``."""
        pieces, places = [], []
        for level in timesteps.unique().tolist():
            chosen = (timesteps == level).nonzero()[:, 0]
            part = [feature[chosen] for feature in features]
            pieces.append(self.levels[level](part, timesteps[chosen]))
            places.append(chosen)
        order = torch.cat(places).argsort()
        return [torch.cat(logits)[order] for logits in zip(*pieces, strict=True)]


def discriminator_for(
    config: Config | Mapping[str, Any], *, c_dim: int = 64, time_aware: bool = True
) -> ProjectedDiscriminator:
    """The discriminator on the features of a teacher.

    Args:
        config: of the teacher.
        c_dim, time_aware: as of ``ProjectedDiscriminator``.
    """
    config = Config.of(config)
    mult = config.channel_mult
    return ProjectedDiscriminator(
        c_dim,
        config.model_channels,
        (*mult[:-1], mult[-1], mult[-1]),
        norm_groups=config.norm_groups,
        time_aware=time_aware,
    )
