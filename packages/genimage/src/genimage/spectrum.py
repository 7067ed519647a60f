"""What Spec looks at: the logarithm of a picture's Fourier magnitudes, channel by channel."""

from __future__ import annotations

import torch
from torch import Tensor

BANDS = ("all", "low", "middle", "high")
INNER, OUTER = slice(57, 177), slice(21, 203)  # of 224 rows and columns, zero frequency in 112


def band_mask(band: str, size: int) -> Tensor | None:
    """Which frequencies a band mode keeps, zero frequency in the middle.

    Args:
        band: one of ``BANDS``.
        size: side of the picture; the authors' bounds are for 224 and scale with it.

    Returns:
        bool (size, size), or None for ``all``.

    Raises:
        ValueError: there is no such band.
    """
    if band not in BANDS:
        raise ValueError(f"no band {band!r}; known: {', '.join(BANDS)}")
    if band == "all":
        return None
    inner, outer = (torch.zeros(size, size, dtype=torch.bool) for _ in range(2))
    for mask, span in ((inner, INNER), (outer, OUTER)):
        kept = slice(round(span.start * size / 224), round(span.stop * size / 224))
        mask[kept, kept] = True
    return {"low": inner, "middle": outer & ~inner, "high": ~outer}[band]


def log_spectrum(images: Tensor, *, band: str = "all") -> Tensor:
    """``2 ((L - lo) / (hi - lo) - 1/2)`` clipped to [-1, 1], with ``L = ln(|FFT| + 1e-3)``.

    lo and hi are the 5th and the 95th percentile of L over the channel; the zero frequency stays
    at the corner. Computed in float64, as numpy 1 did for the authors.

    Args:
        images: uint8, or floats 0..255, (..., C, S, S).
        band: frequencies that stay; the others become 0.

    Returns:
        float32, the same shape.

    Source: AutoGAN's loader (Zhang, Karaman, Chang 2019).
    """
    logs = (torch.fft.fft2(images.double() / 255).abs() + 1e-3).log()
    flat = logs.flatten(-2)
    levels = torch.tensor([0.05, 0.95], dtype=flat.dtype, device=flat.device)
    low, high = torch.quantile(flat, levels, dim=-1)[..., None, None]
    scaled = (2 * ((logs - low) / (high - low).clamp_min(1e-12) - 0.5)).clamp(-1, 1)
    mask = band_mask(band, images.shape[-1])
    if mask is not None:
        # The authors shift twice, which is back and forth only for even sizes.
        shifted = torch.fft.fftshift(scaled, dim=(-2, -1)) * mask.to(scaled)
        scaled = torch.fft.fftshift(shifted, dim=(-2, -1))
    return scaled.float()
