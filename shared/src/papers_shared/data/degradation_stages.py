"""The stages of Real-ESRGAN's degradation: blur, resize, noise, JPEG, each with fixed parameters.

On batches of torch tensors and on any device; basicsr's functions where it has them without
random choices inside.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from papers_shared._basicsr import basicsr_module

# basicsr's JPEG divides by the step size, which is 0 at quality 100.
_BEST_QUALITY = 99.99


@dataclass(frozen=True)
class Noise:
    """One draw of noise.

    Attributes:
        kind: ``gaussian`` or ``poisson``.
        level: deviation in levels of 255; factor onto the Poisson noise.
        grey: the same noise in all channels.
        seed: of the noise's values.
    """

    kind: Literal["gaussian", "poisson"]
    level: float
    grey: bool
    seed: int


def blur(image: Tensor, kernel: Tensor) -> Tensor:
    """Correlate every channel with ``kernel``, reflecting at the border.

    Args:
        image: (B, C, H, W) floats, sides larger than half of the kernel's.
        kernel: (k, k) with k odd, not all zero.

    Raises:
        ValueError: the kernel's shape.

    Source: basicsr 1.4.2, ``filter2D``.
    """
    side = kernel.shape[-1]
    if kernel.shape != (side, side) or side % 2 == 0:
        raise ValueError(f"a blur kernel is (k, k) with k odd, got {tuple(kernel.shape)}")
    # The zeros around a kernel change nothing, and take most of the time.
    offsets = (torch.arange(side) - side // 2).abs()
    rings = torch.maximum(offsets[:, None], offsets[None])
    border = side // 2 - int(rings[kernel.cpu() != 0].max())
    trimmed = kernel[border : side - border, border : side - border]
    filter2d = basicsr_module("utils.img_process_util").filter2D
    return filter2d(image, trimmed[None].to(image))


def resize(
    image: Tensor, mode: str, *, scale: float | None = None, size: Sequence[int] | None = None
) -> Tensor:
    """(B, C, H, W) -> ``size``, or the sides times ``scale`` rounded down; no anti-aliasing.

    Args:
        image: floats.
        mode: ``area``, ``bilinear`` or ``bicubic`` (which may overshoot [0, 1]).
        scale: factor of both sides.
        size: (height, width).

    Source: torch's ``interpolate``, with its defaults.
    """
    return functional.interpolate(
        image, size=None if size is None else tuple(size), scale_factor=scale, mode=mode
    )


def add_noise(image: Tensor, noise: Noise) -> Tensor:
    """Add Gaussian or Poisson noise and clip to [0, 1].

    The noise is drawn on the CPU, so that it is the same on every device. Poisson noise is that
    of as many levels as the picture has values, rounded up to a power of two.

    Args:
        image: (1, 3, H, W) floats near [0, 1].
        noise: what to add.

    Source: basicsr 1.4.2, ``add_gaussian_noise_pt`` and ``add_poisson_noise_pt``.
    """
    generator = torch.Generator().manual_seed(noise.seed)
    if noise.kind == "gaussian":
        shape = (1, 1, *image.shape[-2:]) if noise.grey else image.shape
        added = torch.randn(shape, generator=generator).to(image) * noise.level / 255
    else:
        if noise.grey:
            weights = image.new_tensor([0.2989, 0.587, 0.114])
            base = torch.einsum("bchw,c->bhw", image, weights)[:, None]
        else:
            base = image
        eight_bit = (base.clamp(0, 1) * 255).round().cpu()
        values = torch.bincount(eight_bit.flatten().int(), minlength=256).count_nonzero().item()
        seen, levels = eight_bit / 255, 2 ** math.ceil(math.log2(values))
        counted = torch.poisson(seen * levels, generator=generator) / levels
        added = (counted - seen).to(image) * noise.level
    return (image + added).clamp(0, 1)


def jpeg(image: Tensor, quality: float | Sequence[float]) -> Tensor:
    """Compress and decompress: tables and rounding of JPEG, 4:2:0, values not rounded to 8 bits.

    Args:
        image: (B, 3, H, W) floats; clipped to [0, 1].
        quality: above 0, up to 100 (taken as 99.99: 100 would divide by zero); one, or one an
            image.

    Raises:
        ValueError: a quality outside (0, 100].

    Source: basicsr 1.4.2, ``DiffJPEG(differentiable=False)``.
    """
    qualities = [quality] * len(image) if isinstance(quality, (int, float)) else list(quality)
    if not all(0 < q <= 100 for q in qualities):
        raise ValueError(f"JPEG quality must be above 0 and at most 100, got {quality}")
    # basicsr turns the tensor into step sizes in place: a fresh one for every call.
    capped = image.new_tensor([min(q, _BEST_QUALITY) for q in qualities])
    with torch.no_grad():
        return _codec(image.device)(image.clamp(0, 1), quality=capped)


@functools.cache
def _codec(device: torch.device) -> torch.nn.Module:
    # basicsr's tables are parameters of its module, shared by all codecs; .to() would move them
    # under the codecs of other devices.
    codec = basicsr_module("utils.diffjpeg").DiffJPEG(differentiable=False)
    return copy.deepcopy(codec).to(device).requires_grad_(False)
