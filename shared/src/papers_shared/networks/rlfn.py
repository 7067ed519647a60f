"""RLFN: residual local feature network (Kong et al., arXiv 2205.07514), winner of NTIRE 2022."""

from __future__ import annotations

from torch import Tensor, nn

from papers_shared.networks.attention import ESA


class RLFB(nn.Module):
    """Three convolutions with a residual, then a 1x1 convolution and ESA.

    Source: RLFN, section 3.2.
    """

    def __init__(self, channels: int, *, esa_features: int = 16) -> None:
        super().__init__()
        self.c1_r = nn.Conv2d(channels, channels, 3, padding=1)
        self.c2_r = nn.Conv2d(channels, channels, 3, padding=1)
        self.c3_r = nn.Conv2d(channels, channels, 3, padding=1)
        self.c5 = nn.Conv2d(channels, channels, 1)
        self.esa = ESA(channels, esa_features, convolutions=1)
        self.activation = nn.LeakyReLU(0.05)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        y = x
        for conv in (self.c1_r, self.c2_r, self.c3_r):
            y = self.activation(conv(y))
        return self.esa(self.c5(y + x))


class RLFN(nn.Module):
    """Six RLFBs in a chain. Takes and gives RGB in [0, 255].

    Args:
        scale: of the enlargement.
        channels: 52; 48 in RLFN-S.

    Source: RLFN, section 3.1.
    """

    def __init__(self, scale: int, channels: int = 52) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(3, channels, 3, padding=1)
        for i in range(1, 7):
            self.add_module(f"block_{i}", RLFB(channels))
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.upsampler = nn.Sequential(
            nn.Conv2d(channels, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, scale * H, scale * W)."""
        features = out = self.conv_1(x)
        for i in range(1, 7):
            out = self.get_submodule(f"block_{i}")(out)
        return self.upsampler(self.conv_2(out) + features)
