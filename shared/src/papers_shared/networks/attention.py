"""Enhanced spatial attention (ESA), which RLFN, RFDN, EFDN and BSRN share in four forms."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

Conv = Callable[..., nn.Module]


class ESA(nn.Module):
    """A gate for every pixel and channel, from a strongly reduced map of few features.

    a = conv1(x); b = max-pool 7x7, stride 3, of conv2(a) (stride 2, no padding); c = the
    convolutions of the reduced map, enlarged bilinearly; out = x sigmoid(conv4(c + conv_f(a))).

    Args:
        channels: of the map to be gated.
        features: of the reduced map.
        convolutions: of the reduced map: 3 (RFDN, EFDN, BSRN: two activations between) or 1
            (RLFN).
        conv: makes the 3x3 convolutions, called as ``nn.Conv2d`` is.
        activation: between the three.

    Source: RFANet (Liu et al., CVPR 2020), section 3.3; RLFN (arXiv 2205.07514), figure 3.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        *,
        convolutions: int = 3,
        conv: Conv = nn.Conv2d,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if convolutions not in (1, 3):
            raise ValueError(f"ESA has 1 or 3 convolutions of the reduced map, not {convolutions}")
        self.conv1 = nn.Conv2d(channels, features, 1)
        self.conv_f = nn.Conv2d(features, features, 1)
        self.conv2 = conv(features, features, 3, stride=2)
        if convolutions == 3:
            self.conv_max = conv(features, features, 3, padding=1)
            self.conv3_ = conv(features, features, 3, padding=1)
        self.conv3 = conv(features, features, 3, padding=1)
        self.conv4 = nn.Conv2d(features, channels, 1)
        self.convolutions = convolutions
        self.activation = activation or nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape; sides of at least 15 pixels."""
        a = self.conv1(x)
        c = F.max_pool2d(self.conv2(a), kernel_size=7, stride=3)
        if self.convolutions == 3:
            c = self.conv3(self.activation(self.conv_max(c)))
            c = self.conv3_(self.activation(c))
        else:
            c = self.conv3(c)
        c = F.interpolate(c, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return x * self.conv4(c + self.conv_f(a)).sigmoid()
