"""A binary weight in bits, with the two values of each output channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from papers_shared.packing import pack_bits, unpack_bits

_MAX_FAN_IN = 1 << 24  # below it, sums of a filter are exact in float32 and far from int32's end


@dataclass(frozen=True, eq=False)
class PackedBinaryWeight:
    """A binary weight: one bit a value, two reals an output channel.

    Attributes:
        bits: (O, ceil(KH * KW * C / 8)) uint8. Value (tap, channel), tap = row * KW + column, is
            bit ``i = tap * C + channel`` of its row: bit ``i % 8`` of byte ``i // 8``. 1 is +1.
        scale: (O,) half the distance of the two values (``alpha_w``); may be negative.
        center: (O,) the middle of the two values (``beta_w``).
        in_channels: C.
        kernel_size: (KH, KW).
    """

    bits: Tensor
    scale: Tensor
    center: Tensor
    in_channels: int
    kernel_size: tuple[int, int]

    @property
    def out_channels(self) -> int:
        return self.bits.shape[0]

    @property
    def taps(self) -> int:
        return self.kernel_size[0] * self.kernel_size[1]

    def bit_tensor(self) -> Tensor:
        """(O, KH * KW, C) uint8 zeros and ones."""
        bits = unpack_bits(self.bits, count=self.taps * self.in_channels)
        return bits.unflatten(1, (self.taps, self.in_channels))

    def signs(self, dtype: torch.dtype) -> Tensor:
        """(O, C, KH, KW) of -1 and +1."""
        signs = self.bit_tensor().to(dtype).mul_(2).sub_(1)
        return signs.unflatten(1, self.kernel_size).permute(0, 3, 1, 2).contiguous()

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """(O, C, KH, KW): the two-valued weight that the bits stand for."""
        dtype = dtype or self.scale.dtype
        scale, center = (v.to(dtype)[:, None, None, None] for v in (self.scale, self.center))
        return scale * self.signs(dtype) + center

    def words(self) -> Tensor:
        """(O, KH * KW, ceil(C / 64)) int64: channel c is bit c % 64 of word c // 64."""
        padded = F.pad(self.bit_tensor(), (0, -self.in_channels % 64))
        octets = pack_bits(padded).to(torch.int64).unflatten(-1, (-1, 8))
        return (octets << (8 * torch.arange(8, device=octets.device))).sum(-1)


def pack_weight(weight: Tensor) -> PackedBinaryWeight:
    """Binarise a weight per output channel to {mean - std, mean + std} and pack the signs.

    Args:
        weight: (O, C, KH, KW) latent weights; the standard deviation is the population's.

    Returns:
        The packed weight; ``scale`` is the standard deviation, ``center`` the mean, in
        ``weight``'s dtype. A value equal to its filter's mean packs as -1.

    Raises:
        ValueError: wrong shape, a constant filter (its standard deviation is 0), or a filter
            of 2**24 values and more.

    Source: AdaBin, weight equalisation.
    """
    weight = weight.detach()
    if weight.dim() != 4 or not weight.is_floating_point():
        raise ValueError(
            f"weight of shape {tuple(weight.shape)} and {weight.dtype}: "
            "expected floats of shape (out_channels, in_channels, kernel_h, kernel_w)"
        )
    fan_in = weight[0].numel()
    if fan_in >= _MAX_FAN_IN:
        raise ValueError(f"{fan_in} values a filter: the integer sums need fewer than 2**24")
    # The very expressions of the dense layer, so that both round to the same signs and scales.
    center = weight.mean((1, 2, 3), keepdim=True)
    scale = ((weight - center) ** 2).mean((1, 2, 3), keepdim=True).sqrt()
    constant = (~(scale > 0)).flatten().nonzero().flatten().tolist()
    if constant:
        raise ValueError(
            f"filter {constant[0]} of weight {tuple(weight.shape)} is constant or not finite "
            f"({len(constant)} such): it has no two values; re-initialise or remove the channel"
        )
    bits = weight > center
    return PackedBinaryWeight(
        bits=pack_bits(bits.permute(0, 2, 3, 1).flatten(1)),
        scale=scale.flatten(),
        center=center.flatten(),
        in_channels=weight.shape[1],
        kernel_size=(weight.shape[2], weight.shape[3]),
    )
