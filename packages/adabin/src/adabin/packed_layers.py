"""The parts of a packed network: binary convolutions in bits, all else folded.

Source: AdaBin's inference (section 3 of the paper); the authors' code only simulates bits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adabin.layers import AdaBinConv2d, Maxout
from adabin.mobilenet import MobileBlock, ShiftedPReLU
from adabin.model import BasicBlock, ConvShortcutBlock, DownsampleBlock, subsample_and_pad
from papers_shared.kernels import PackedBinaryConv2d, batch_norm_affine


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]


def maxout_slopes(maxout: nn.Module) -> Tensor:
    """(2, C): the positive and the negative slope.

    Raises:
        ValueError: another nonlinearity.
    """
    if not isinstance(maxout, Maxout):
        raise ValueError(f"only networks with Maxout can be packed, this one has {maxout}")
    return torch.stack([maxout.pos_scale, maxout.neg_scale]).detach().clone()


def fused_conv(conv: AdaBinConv2d, norm: nn.BatchNorm2d, maxout: nn.Module) -> PackedBinaryConv2d:
    return conv.pack().fold_batch_norm(norm).fuse_slopes(*maxout_slopes(maxout))


def folded_conv(conv: nn.Module, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A full-precision convolution with the batch norm that follows it folded in."""
    assert isinstance(conv, nn.Conv2d)
    assert not isinstance(conv.padding, str)
    scale, shift = batch_norm_affine(norm)
    folded = nn.Conv2d(
        conv.in_channels, conv.out_channels, _pair(conv.kernel_size),
        stride=_pair(conv.stride), padding=_pair(conv.padding), dtype=conv.weight.dtype,
        device=conv.weight.device,
    ).requires_grad_(False)  # fmt: skip
    folded.weight.copy_(conv.weight.double() * scale[:, None, None, None])
    assert folded.bias is not None
    folded.bias.copy_(shift)
    return folded.to(memory_format=torch.channels_last)


def folded_linear(norm: nn.BatchNorm1d, linear: nn.Linear) -> nn.Linear:
    """A linear layer with the batch norm before it folded in."""
    scale, shift = batch_norm_affine(norm)
    folded = nn.Linear(
        linear.in_features, linear.out_features,
        dtype=linear.weight.dtype, device=linear.weight.device,
    ).requires_grad_(False)  # fmt: skip
    weight = linear.weight.detach().double()
    folded.weight.copy_(weight * scale)
    folded.bias.copy_(linear.bias.detach().double() + weight @ shift)
    return folded


class Slopes(nn.Module):
    """Maxout of inference: ``x`` times one of two slopes per channel."""

    slopes: Tensor

    def __init__(self, slopes: Tensor) -> None:
        super().__init__()
        self.register_buffer("slopes", slopes)

    def forward(self, x: Tensor) -> Tensor:
        positive, negative = self.slopes[:, :, None, None]
        return x * torch.where(x > 0, positive, negative)


class Stem(nn.Sequential):
    """Convolutions in full precision, each followed by Maxout; max pooling where asked for."""

    def __init__(self, *layers: nn.Module, pool: bool) -> None:
        super().__init__(*layers)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        *others, last = self
        assert isinstance(last, Slopes)
        for layer in others:
            x = layer(x)
        if not self.pool:
            return last(x)
        if (last.slopes >= 0).all():  # increasing, so the maximum may be taken first: 4x less work
            return last(F.max_pool2d(x, 3, stride=2, padding=1))
        return F.max_pool2d(last(x), 3, stride=2, padding=1)


class PackedBlock(nn.Module):
    """A residual block: each packed convolution adds its shortcut and applies Maxout itself."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.conv1 = fused_conv(block.conv1, block.bn1, block.nonlinear1)
        self.conv2 = fused_conv(block.conv2, block.bn2, block.nonlinear2)
        self.skip: Callable[[Tensor], Tensor] = nn.Identity()
        if block.changes_shape:
            self.skip = _packed_skip(block)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x, self.skip(x))
        return self.conv2(x, x)


class SubsampleAndPad(nn.Module):
    """See ``subsample_and_pad``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return subsample_and_pad(x, self.channels)


def _packed_skip(block: BasicBlock) -> nn.Module:
    if isinstance(block, ConvShortcutBlock):
        layers = block.shortcut
    elif isinstance(block, DownsampleBlock):
        layers = block.downsample
    else:
        return SubsampleAndPad(block.conv1.out_channels)
    *pool, conv, norm = layers
    assert isinstance(norm, nn.BatchNorm2d)
    return nn.Sequential(*pool, folded_conv(conv, norm))


class PooledUnit(nn.Module):
    """VGG-Small's odd layers: packed convolution, max pooling, batch norm, Maxout."""

    scale: Tensor
    shift: Tensor

    def __init__(self, conv: AdaBinConv2d, norm: nn.BatchNorm2d, maxout: nn.Module) -> None:
        super().__init__()
        self.conv = conv.pack()
        scale, shift = batch_norm_affine(norm)
        self.register_buffer("scale", scale.to(conv.weight.dtype))
        self.register_buffer("shift", shift.to(conv.weight.dtype))
        self.maxout = Slopes(maxout_slopes(maxout))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv(x), 2)
        return self.maxout(self.scale[:, None, None] * x + self.shift[:, None, None])


class PackedMobileBlock(nn.Module):
    """AdaBin-A's block; the inner shift of its nonlinearity is part of the convolution's bias."""

    shifts1: Tensor
    shifts2: Tensor

    def __init__(self, block: MobileBlock) -> None:
        super().__init__()
        self.stride = block.stride
        self.conv3x3 = _shifted_conv(block.conv3x3, block.bn1, block.nonlinear1, 0)
        width = block.conv3x3.out_channels
        self.conv1x1 = nn.ModuleList(
            _shifted_conv(conv, norm, block.nonlinear2, i * width)
            for i, (conv, norm) in enumerate(zip(block.conv1x1, block.bn2, strict=True))
        )
        self.register_buffer("shifts1", block.nonlinear1.shift_out.detach().clone())
        self.register_buffer("shifts2", block.nonlinear2.shift_out.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        skip = F.avg_pool2d(x, 2) if self.stride == 2 else x
        x = self.conv3x3(x, skip) + self.shifts1[:, None, None]
        x = torch.cat([conv(x, x) for conv in self.conv1x1], dim=1)
        return x + self.shifts2[:, None, None]


def _shifted_conv(
    conv: nn.Module, norm: nn.Module, nonlinear: ShiftedPReLU, first: int
) -> PackedBinaryConv2d:
    """A convolution with the channels from ``first`` on of the nonlinearity behind it."""
    assert isinstance(conv, AdaBinConv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    packed = conv.pack().fold_batch_norm(norm)
    own = slice(first, first + conv.out_channels)
    assert packed.bias is not None  # the folded batch norm's
    packed.bias = packed.bias + nonlinear.shift_in.detach()[own]
    negative = nonlinear.prelu.weight[own]
    return packed.fuse_slopes(torch.ones_like(negative), negative)
