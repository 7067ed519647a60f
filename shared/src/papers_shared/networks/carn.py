"""CARN-M: cascading residual network, mobile form (Ahn et al., arXiv 1803.08664)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MEAN = (0.4488, 0.4371, 0.4040)


class MeanShift(nn.Module):
    """Adds ``sign`` times DIV2K's mean colour; a 1x1 convolution, as the released file has it."""

    def __init__(self, sign: int) -> None:
        super().__init__()
        self.shifter = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.shifter.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            self.shifter.bias.copy_(sign * torch.tensor(MEAN))  # type: ignore[union-attr]
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.shifter(x)


class EResidualBlock(nn.Module):
    """Two grouped 3x3 convolutions and a 1x1, with a residual. Source: CARN, section 3.3."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=groups),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, groups=groups),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + x).relu()


class _Join(nn.Module):
    """1x1 convolution and ReLU of all that came before."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class _Cascade(nn.Module):
    """Each stage's output joins the concatenation that the next one reduces.

    Source: CARN, section 3.1, equations 3 and 4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        for i in range(1, 4):
            self.add_module(f"c{i}", _Join((i + 1) * channels, channels))

    def stage(self, i: int) -> nn.Module:
        """The i-th of three."""
        return self.get_submodule(f"b{i}")

    def forward(self, x: Tensor) -> Tensor:
        every, out = x, x
        for i in range(1, 4):
            every = torch.cat([every, self.stage(i)(out)], dim=1)
            out = self.get_submodule(f"c{i}")(every)
        return out


class CascadingBlock(_Cascade):
    """A cascade whose three stages share one residual block."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels)
        self.b1 = EResidualBlock(channels, groups)

    def stage(self, i: int) -> nn.Module:
        return self.b1


class _Upsample(nn.Module):
    def __init__(self, channels: int, *, steps: tuple[int, ...], groups: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for step in steps:
            conv = nn.Conv2d(channels, channels * step**2, 3, padding=1, groups=groups)
            layers += [conv, nn.ReLU(), nn.PixelShuffle(step)]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class CARNM(_Cascade):
    """CARN-M with the tails of all three scales, of which one is used. RGB in [0, 1].

    Args:
        scale: 2, 3 or 4: which tail.

    Raises:
        ValueError: another scale.
    """

    def __init__(self, scale: int, *, channels: int = 64, groups: int = 4) -> None:
        super().__init__(channels)
        if scale not in (2, 3, 4):
            raise ValueError(f"CARN-M enlarges 2, 3 or 4 times, not {scale}")
        self.scale = scale
        self.sub_mean, self.add_mean = MeanShift(-1), MeanShift(1)
        self.entry = nn.Conv2d(3, channels, 3, padding=1)
        for i in range(1, 4):
            self.add_module(f"b{i}", CascadingBlock(channels, groups))
        self.upsample = nn.ModuleDict(
            {
                f"up{s}": _Upsample(channels, steps=steps, groups=groups)
                for s, steps in ((2, (2,)), (3, (3,)), (4, (2, 2)))
            }
        )
        self.exit = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, scale * H, scale * W)."""
        out = super().forward(self.entry(self.sub_mean(x)))
        return self.add_mean(self.exit(self.upsample[f"up{self.scale}"](out)))
