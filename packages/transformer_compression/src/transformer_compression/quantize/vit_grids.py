"""Quantizers of FQ-ViT and RepQ-ViT.

Source: Lin et al., arXiv 2111.13824; Li et al., arXiv 2212.08254; sheet 4.11 (their code).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Integer exponential of I-BERT: a second-order polynomial on (-ln 2, 0], and shifts.
EXP_A, EXP_B, EXP_C, LN2, SHIFTS = 0.35815147, 0.96963238, 1.0, 0.6931, 30
QUANTILES = (0.999, 0.9999, 0.99999)
SQRT2 = math.sqrt(2)


# --- FQ-ViT --------------------------------------------------------------------------------------


def log2_codes(p: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """``round(-log2 p)`` clamped to the codes, and where it lies beyond them (those become 0)."""
    raw = torch.round(-torch.log2(p))
    return raw.clamp(0, 2**bits - 1), raw >= 2**bits


def log2_softmax(p: Tensor, bits: int) -> Tensor:
    """Probabilities as powers of two."""
    codes, beyond = log2_codes(p, bits)
    return torch.where(beyond, 0.0, 2.0**-codes)


@dataclass
class PowerOfTwoFactor:
    """Scale a channel (power-of-two multiples of one), zero of the layer.

    Attributes:
        scale: (C,).
        alpha: (C,), exponents 0 .. 3.
        zero: scalar.
    """

    scale: Tensor
    alpha: Tensor
    zero: Tensor

    def quantize(self, x: Tensor) -> Tensor:
        """(..., C) moved to the grid of each channel, unsigned 8 bits."""
        return _asymmetric(x, self.scale, self.zero, 8)


def _asymmetric(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    return ((x / scale).add(zero).round().clamp(0, 2**bits - 1) - zero) * scale


def power_of_two_factor(x: Tensor) -> PowerOfTwoFactor:
    """Fit to inputs (..., C): the layer's scale / 8 times 2^alpha, alpha of least error."""
    flat = x.reshape(-1, x.shape[-1])
    top = 255
    scale = (flat.max() - flat.min()) / top
    zero = torch.round(-flat.min() / scale).clamp(0, top)
    scales = [scale / 8 * 2**a for a in range(4)]
    errors = torch.stack([(_asymmetric(flat, s, zero, 8) - flat).square().mean(0) for s in scales])
    alpha = errors.argmin(0)
    return PowerOfTwoFactor(torch.stack(scales)[alpha], alpha, zero)


def integer_softmax(scores: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Softmax of ``scores = scale * whole numbers`` by whole numbers alone, as powers of two.

    Args:
        scores: (..., N), multiples of ``scale``.
        scale: scalar.
        bits: of the log2 codes.

    Returns:
        powers of two, 0 where a code lies beyond the codes.
    """
    i = torch.round(scores / scale)
    i = i - i.amax(-1, keepdim=True)
    x0 = torch.floor(-LN2 / scale)
    i = torch.maximum(i, SHIFTS * x0)
    k = torch.floor(i / x0)
    r = i - x0 * k
    b = torch.floor(EXP_B / EXP_A / scale)
    c = torch.floor(EXP_C / EXP_A / scale**2)
    e = torch.floor((r * (r + b) + c) * 2.0 ** (SHIFTS - k)).clamp(min=0)
    u = torch.round(e.sum(-1, keepdim=True) / e)
    f = torch.floor(torch.log2(u))
    codes = f + (u - 2.0**f >= 2.0 ** (f - 1))
    return torch.where(codes >= 2**bits, 0.0, 2.0 ** -codes.clamp(0, 2**bits - 1))


# --- RepQ-ViT ------------------------------------------------------------------------------------


def quantile(x: Tensor, at: float) -> Tensor:
    """Quantile of all values; above 16 million, which torch refuses, of every n-th."""
    flat = x.flatten().float()
    limit = 1 << 24
    return torch.quantile(flat[:: -(-len(flat) // limit)], at)


def quantile_grid(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Asymmetric scale and zero of one tensor: the best of three quantile ranges."""
    best: tuple[Tensor, Tensor] | None = None
    least = math.inf
    for t in QUANTILES:
        high, low = quantile(x, t), quantile(x, 1 - t)
        scale = ((high - low) / (2**bits - 1)).clamp(min=1e-8)
        zero = torch.round(-low / scale)
        error = (quantize_asymmetric(x, scale, zero, bits) - x).square().mean().item()
        if error < least or best is None:
            best, least = (scale, zero), error
    return best  # type: ignore[return-value]


def quantile_grid_channels(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """``quantile_grid`` of every channel (..., C): two (C,)."""
    flat = x.reshape(-1, x.shape[-1])
    pairs = [quantile_grid(flat[:, c], bits) for c in range(flat.shape[1])]
    return torch.stack([s for s, _ in pairs]), torch.stack([z for _, z in pairs])


def quantize_asymmetric(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """``(clamp(round(x / s) + z) - z) s``."""
    return ((x / scale).round().add(zero).clamp(0, 2**bits - 1) - zero) * scale


@dataclass
class Reparameterised:
    """What RepQ-ViT makes of a norm and the linear layer behind it.

    Attributes:
        scale, zero: of the whole tensor, after the change.
        norm_weight, norm_bias, weight, bias: of norm and layer, after the change.
    """

    scale: Tensor
    zero: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    weight: Tensor
    bias: Tensor


def reparameterise(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    bits: int,
) -> Reparameterised:
    """One scale for all channels behind a LayerNorm; the differences go into norm and weights.

    Args:
        x: (..., C), the norm's output.
        norm_weight, norm_bias: (C,).
        weight: (rows, C).
        bias: (rows,).
        bits: of the inputs.
    """
    scales, zeros = quantile_grid_channels(x, bits)
    scale, zero = scales.mean(), zeros.mean()
    r = scales / scale
    d = -zeros * scales / r + zero * scale
    changed = weight * r
    return Reparameterised(
        scale, zero, norm_weight / r, norm_bias / r - d, changed, bias + changed @ d
    )


def log_sqrt2_delta(p: Tensor, bits: int) -> Tensor:
    """The largest value of the grid for probabilities: the best of three quantiles."""
    tried = [quantile(p, t) for t in QUANTILES]
    errors = [(log_sqrt2_softmax(p, d, bits) - p).square().mean() for d in tried]
    return tried[int(torch.stack(errors).argmin())]


def log_sqrt2_softmax(p: Tensor, delta: Tensor, bits: int) -> Tensor:
    """Probabilities as ``delta`` times powers of 1 / sqrt 2."""
    raw = torch.round(-2 * torch.log2(p / delta))
    codes = raw.clamp(0, 2**bits - 1)
    odd = torch.where(codes % 2 == 1, SQRT2, 1.0)
    return torch.where(raw >= 2**bits, 0.0, delta * 2.0 ** -(codes / 2).ceil() * odd)
