"""RFDN and BSRN: feature distillation in four steps, then ESA.

RFDN: residual feature distillation network (Liu et al., arXiv 2009.11551), winner of AIM 2020.
BSRN: blueprint separable residual network (Li et al., arXiv 2205.05996): RFDN's block with
separable convolutions and contrast-aware channel attention.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from papers_shared.networks.attention import ESA, Conv


class BSConv(nn.Module):
    """Blueprint separable convolution: 1x1 without bias, then one 3x3 filter a channel.

    Source: BSRN, section 3.2.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int = 3, *, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.pw = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.dw = nn.Conv2d(
            outputs, outputs, kernel_size, stride=stride, padding=padding, groups=outputs
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H', W')."""
        return self.dw(self.pw(x))


class CCA(nn.Module):
    """Contrast-aware channel attention: a gate from every channel's deviation plus mean.

    Source: IMDN (arXiv 1909.11856), section 3.3.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1),
            nn.ReLU(),
            nn.Conv2d(channels // reduction, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        contrast = x.std(dim=(2, 3), correction=0, keepdim=True)
        return x * self.conv_du(contrast + x.mean(dim=(2, 3), keepdim=True))


class DistillationBlock(nn.Module):
    """Three times a part is set aside by a 1x1 convolution and the rest refined; then ESA.

    Args:
        channels: of the block.
        esa_features: of the reduced map in ESA.
        conv: makes the 3x3 convolutions.
        activation: throughout.
        esa_activation: inside ESA.
        cca: channel attention after ESA, and a residual around the block (BSRN).

    Source: RFDN, section 3.3; BSRN, section 3.3 (ESDB).
    """

    def __init__(
        self,
        channels: int,
        *,
        esa_features: int,
        conv: Conv,
        activation: nn.Module,
        esa_activation: nn.Module,
        cca: bool,
    ) -> None:
        super().__init__()
        distilled = channels // 2
        for i in range(1, 4):
            self.add_module(f"c{i}_d", nn.Conv2d(channels, distilled, 1))
            self.add_module(f"c{i}_r", conv(channels, channels, 3, padding=1))
        self.c4 = conv(channels, distilled, 3, padding=1)
        self.c5 = nn.Conv2d(4 * distilled, channels, 1)
        self.esa = ESA(channels, esa_features, conv=conv, activation=esa_activation)
        self.cca = CCA(channels) if cca else None
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        rest, parts = x, []
        for i in range(1, 4):
            parts.append(self.activation(self.get_submodule(f"c{i}_d")(rest)))
            rest = self.activation(self.get_submodule(f"c{i}_r")(rest) + rest)
        parts.append(self.activation(self.c4(rest)))
        out = self.esa(self.c5(torch.cat(parts, dim=1)))
        return out if self.cca is None else self.cca(out) + x


class RFDN(nn.Module):
    """The challenge model: four blocks of 50 channels, x4. Takes and gives RGB in [0, 255].

    Source: RFDN, section 3.2 (the paper's own model is larger).
    """

    def __init__(self, scale: int = 4, channels: int = 50) -> None:
        super().__init__()
        self.fea_conv = nn.Conv2d(3, channels, 3, padding=1)
        for i in range(1, 5):
            block = DistillationBlock(
                channels,
                esa_features=12,
                conv=nn.Conv2d,
                activation=nn.LeakyReLU(0.05),
                esa_activation=nn.ReLU(),
                cca=False,
            )
            self.add_module(f"B{i}", block)
        self.c = nn.Sequential(nn.Conv2d(4 * channels, channels, 1), nn.LeakyReLU(0.05))
        self.LR_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.upsampler = nn.Sequential(
            nn.Conv2d(channels, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, scale * H, scale * W)."""
        features = self.fea_conv(x)
        outputs = [features]
        for i in range(1, 5):
            outputs.append(self.get_submodule(f"B{i}")(outputs[-1]))
        out = self.LR_conv(self.c(torch.cat(outputs[1:], dim=1)))
        return self.upsampler(out + features)


class BSRN(nn.Module):
    """Eight blocks of 64 channels of separable convolutions. Takes and gives RGB in [0, 1].

    Source: BSRN, section 3.1.
    """

    BLOCKS = 8

    def __init__(self, scale: int, channels: int = 64) -> None:
        super().__init__()
        self.fea_conv = BSConv(4 * 3, channels, padding=1)
        for i in range(1, self.BLOCKS + 1):
            block = DistillationBlock(
                channels,
                esa_features=16,
                conv=BSConv,
                activation=nn.GELU(),
                esa_activation=nn.GELU(),
                cca=True,
            )
            self.add_module(f"B{i}", block)
        self.c1 = nn.Conv2d(self.BLOCKS * channels, channels, 1)
        self.activation = nn.GELU()
        self.c2 = BSConv(channels, channels, padding=1)
        self.upsampler = nn.ModuleDict(
            {
                "upsampleOneStep": nn.Sequential(
                    nn.Conv2d(channels, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale)
                )
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, scale * H, scale * W)."""
        features = self.fea_conv(torch.cat([x] * 4, dim=1))
        outputs = [features]
        for i in range(1, self.BLOCKS + 1):
            outputs.append(self.get_submodule(f"B{i}")(outputs[-1]))
        out = self.c2(self.activation(self.c1(torch.cat(outputs[1:], dim=1))))
        return self.upsampler["upsampleOneStep"](out + features)
