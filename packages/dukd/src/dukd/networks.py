"""EDSR and RCAN in basicsr's layout, for where basicsr is missing or takes too long to import.

basicsr does not build on Python 3.13, and spandrel has no EDSR and RCAN in another layout. Names
and values of both forms are the same (a test compares them).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K


def _conv(inputs: int, outputs: int, side: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, padding=side // 2)


class Upsampler(nn.Sequential):
    """Convolution and pixel shuffle: once for a scale of 3, log2 times for 2 and 4.

    Raises:
        ValueError: another scale.
    """

    def __init__(self, scale: int, channels: int) -> None:
        if scale not in (2, 3, 4):
            raise ValueError(f"scale is 2, 3 or 4, not {scale}")
        factor = 3 if scale == 3 else 2
        layers: list[nn.Module] = []
        for _ in range(round(math.log(scale, factor))):
            layers += [_conv(channels, factor**2 * channels), nn.PixelShuffle(factor)]
        super().__init__(*layers)


class ResidualBlock(nn.Module):
    """``x + res_scale * conv2(relu(conv1(x)))``."""

    def __init__(self, channels: int, res_scale: float) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.conv1, self.conv2 = _conv(channels, channels), _conv(channels, channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, H, W) -> the same shape."""
        return x + self.conv2(self.relu(self.conv1(x))) * self.res_scale


class _Skeleton(nn.Module):
    """What EDSR and RCAN share: head, long skip, upsampler; RGB in [0, 1] in and out.

    Args:
        body: modules of (B, num_feat, H, W) maps.
        num_in_ch, num_out_ch, num_feat, upscale, img_range, rgb_mean: basicsr's names and defaults.
    """

    mean: Tensor
    alignment = 1  # any size, so tiles and photos need no padding

    def __init__(
        self,
        body: Sequence[nn.Module],
        *,
        num_in_ch: int,
        num_out_ch: int,
        num_feat: int = 64,
        upscale: int = 4,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] = RGB_MEAN,
    ) -> None:
        super().__init__()
        self.img_range = img_range
        mean = torch.tensor(rgb_mean).view(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.conv_first = _conv(num_in_ch, num_feat)
        self.body = nn.Sequential(*body)
        self.conv_after_body = _conv(num_feat, num_feat)
        self.upsample = Upsampler(upscale, num_feat)
        self.conv_last = _conv(num_feat, num_out_ch)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, s * H, s * W), not clamped."""
        mean = self.mean.type_as(x)
        first = self.conv_first((x - mean) * self.img_range)
        features = self.conv_after_body(self.body(first)) + first
        return self.conv_last(self.upsample(features)) / self.img_range + mean


class EDSR(_Skeleton):
    """Lim et al., arXiv 1707.02921; arguments and names as basicsr's.

    Source: dukd sheet 3.1.
    """

    def __init__(
        self,
        num_in_ch: int,
        num_out_ch: int,
        *,
        num_feat: int = 64,
        num_block: int = 16,
        res_scale: float = 1,
        **shared: Any,
    ) -> None:
        body = [ResidualBlock(num_feat, res_scale) for _ in range(num_block)]
        super().__init__(
            body, num_in_ch=num_in_ch, num_out_ch=num_out_ch, num_feat=num_feat, **shared
        )


class ChannelAttention(nn.Module):
    """``x * sigmoid(W2 relu(W1 mean(x)))``, the mean over space."""

    def __init__(self, channels: int, squeeze_factor: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            _conv(channels, channels // squeeze_factor, 1),
            nn.ReLU(inplace=True),
            _conv(channels // squeeze_factor, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, H, W) -> the same shape."""
        return x * self.attention(x)


class RCAB(nn.Module):
    """``x + res_scale * rcab(x)``: two convolutions and channel attention."""

    def __init__(self, channels: int, squeeze_factor: int, res_scale: float) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.rcab = nn.Sequential(
            _conv(channels, channels),
            nn.ReLU(inplace=True),
            _conv(channels, channels),
            ChannelAttention(channels, squeeze_factor),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, H, W) -> the same shape."""
        return self.rcab(x) * self.res_scale + x


class ResidualGroup(nn.Module):
    """RCABs and a convolution, with a residual around them."""

    def __init__(self, channels: int, blocks: int, squeeze_factor: int, res_scale: float) -> None:
        super().__init__()
        self.residual_group = nn.Sequential(
            *(RCAB(channels, squeeze_factor, res_scale) for _ in range(blocks))
        )
        self.conv = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, H, W) -> the same shape."""
        return self.conv(self.residual_group(x)) + x


class RCAN(_Skeleton):
    """Zhang et al., arXiv 1807.02758; arguments and names as basicsr's.

    Source: dukd sheet 3.3.
    """

    def __init__(
        self,
        num_in_ch: int,
        num_out_ch: int,
        *,
        num_feat: int = 64,
        num_group: int = 10,
        num_block: int = 16,
        squeeze_factor: int = 16,
        res_scale: float = 1,
        **shared: Any,
    ) -> None:
        body = [
            ResidualGroup(num_feat, num_block, squeeze_factor, res_scale) for _ in range(num_group)
        ]
        super().__init__(
            body, num_in_ch=num_in_ch, num_out_ch=num_out_ch, num_feat=num_feat, **shared
        )
