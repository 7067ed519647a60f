"""MATLAB's bicubic ``imresize`` as a tensor operation: batched, differentiable, on any device.

Output pixel k (counted from 1) of an axis lies at u = k/s + (1 - 1/s)/2 of the input. Its value is
the sum of the input pixels around u, weighted with Keys' cubic (a = -1/2), which is stretched by
1/s when shrinking with antialiasing; the weights are divided by their sum, and pixels beyond the
border are the mirrored ones (edge pixel repeated). The two axes are resized one after the other.

A row of the output is thus a weighted sum of a few rows of the input: exactly what
``F.embedding_bag`` computes, rows being the embeddings: for a whole batch at once and without
copying it. On a CPU that is faster than ``F.interpolate(antialias=True)``, which has the same
kernel but cuts it off at the border (``benchmarks/imresize.py`` measures both).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def imresize(
    x: Tensor,
    scale: float | None = None,
    size: tuple[int, int] | None = None,
    *,
    antialias: bool = True,
) -> Tensor:
    """Resize images as MATLAB's ``imresize(…, 'bicubic')`` does.

    Args:
        x: images (..., C, H, W), floating point, any value range.
        scale: factor for both sides; the output has ceil(H * scale) rows and ceil(W * scale)
            columns.
        size: the output's (rows, columns) instead; the factor of each side is then their ratio.
        antialias: stretch the kernel when shrinking.

    Returns:
        (..., C, H', W') in the dtype of ``x`` (16-bit floats are computed in float32); neither
        rounded nor clipped, so values can leave the input's range by a few hundredths.

    Raises:
        ValueError: not a floating-point image tensor, or not exactly one of scale and size.

    Source: MATLAB's rule, as in basicsr 1.4.2, ``utils/matlab_functions.imresize``. As there,
        sampling positions are computed in the images' own precision: in float32 they are off by up
        to 1e-4 of a pixel in a 2000-pixel side where 1/scale is not a simple fraction.
    """
    height, width = _checked(x, scale, size)
    if size is None:
        assert scale is not None
        scales = (float(scale), float(scale))
        size = (math.ceil(height * scale), math.ceil(width * scale))
    else:
        scales = (size[0] / height, size[1] / width)
    dtype = torch.promote_types(x.dtype, torch.float32)
    planes = x.to(dtype).reshape(-1, height, width)
    rows = _taps(height, size[0], scales[0], antialias=antialias, like=planes)
    columns = _taps(width, size[1], scales[1], antialias=antialias, like=planes)
    # In the order that transposes the smaller image in between.
    if size[0] <= height:
        out = _resize_columns(_resize_rows(planes, rows), columns)
    else:
        out = _resize_rows(_resize_columns(planes, columns), rows)
    return out.reshape(*x.shape[:-2], *size).to(x.dtype)


def _checked(x: Tensor, scale: float | None, size: tuple[int, int] | None) -> tuple[int, int]:
    if not x.is_floating_point() or x.ndim < 3 or 0 in x.shape:
        raise ValueError(
            f"imresize takes floating-point images (..., C, H, W), got {x.dtype} of shape "
            f"{tuple(x.shape)}; divide uint8 by 255 first"
        )
    if (scale is None) == (size is None):
        raise ValueError("imresize takes exactly one of scale and size")
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"imresize: scale must be positive and finite, got {scale}")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"imresize: size must be two positive integers (H, W), got {size}")
    return x.shape[-2], x.shape[-1]


class _Taps(NamedTuple):
    """How the output pixels of one axis are made of input pixels."""

    indices: Tensor  # (out, taps), mirrored into the input
    weights: Tensor  # (out, taps), each row adds up to 1


def _taps(length: int, out: int, scale: float, *, antialias: bool, like: Tensor) -> _Taps:
    stretch = min(scale, 1.0) if antialias else 1.0
    support = 4 / stretch
    u = torch.arange(1, out + 1, dtype=like.dtype) / scale + 0.5 * (1 - 1 / scale)
    # The kernel vanishes at both ends of its support, so ceil(support) taps hold all of it.
    taps = torch.arange(1, math.ceil(support) + 1, dtype=like.dtype)
    positions = torch.floor(u - support / 2)[:, None] + taps
    weights = _cubic(stretch * (u[:, None] - positions))
    weights = weights / weights.sum(1, keepdim=True)
    indices = (positions.long() - 1) % (2 * length)  # mirroring repeats after twice the length
    indices = torch.minimum(indices, 2 * length - 1 - indices)
    return _Taps(indices.to(like.device), weights.to(like.device))


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x <= 2, far, torch.zeros_like(x)))


def _resize_columns(planes: Tensor, taps: _Taps) -> Tensor:
    return _resize_rows(planes.transpose(1, 2), taps).transpose(1, 2)


def _resize_rows(planes: Tensor, taps: _Taps) -> Tensor:
    """(N, H, W) -> (N, H', W): the rows of all planes, one below the other, are the embeddings."""
    n, height, width = planes.shape
    first = height * torch.arange(n, device=planes.device)
    indices = (first[:, None, None] + taps.indices).flatten(0, 1)
    out = F.embedding_bag(
        indices,
        planes.reshape(n * height, width),
        per_sample_weights=taps.weights.repeat(n, 1),
        mode="sum",
    )
    return out.unflatten(0, (n, -1))
