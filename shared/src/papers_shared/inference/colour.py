"""The colours of an enlarged picture, brought back to those of the picture it was made from.

Diffusion models shift hues and brightness. Both corrections keep the structures of the result and
take the colours of the reference: its low frequencies, or its mean and contrast. They run in
strips of rows, with the same result as on the whole picture.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ColourMethod = Literal["wavelet", "adain", "none"]
LEVELS = 5
_REACH = 2**LEVELS - 1  # dilations 1, 2, 4, 8, 16 add up
_STRIP_PIXELS = 2**20
_EPSILON = 1e-5


@torch.no_grad()
def match_colour(image: Tensor, reference: Tensor, method: ColourMethod = "wavelet") -> Tensor:
    """Give ``image`` the colours of ``reference``.

    ``wavelet``: image - low(image) + low(reference), low being five a-trous passes of the kernel
    (1 2 1; 2 4 2; 1 2 1) / 16 with dilations 1, 2, 4, 8, 16 and edge pixels repeated.
    ``adain``: (image - mean) / std of the image, times std plus mean of the reference, for each
    channel of each picture.

    Args:
        image: (..., 3, H, W), floating point, any value range.
        reference: the same size, or smaller by a whole factor: it is then enlarged bicubically.
        method: ``wavelet``, ``adain``, or ``none``, which returns ``image`` itself.

    Returns:
        as ``image``; values may leave [0, 1] a little.

    Raises:
        ValueError: an unknown method, or shapes that do not go together.

    Source: wavelet: the colour correction of StableSR; adain: Huang and Belongie, 2017.
    """
    if method not in ("wavelet", "adain", "none"):
        raise ValueError(f"unknown method {method!r}; expected wavelet, adain or none")
    if not image.is_floating_point() or image.ndim < 3 or image.shape[-3] != 3:
        raise ValueError(
            f"expected floats (..., 3, H, W), got {image.dtype} of {tuple(image.shape)}"
        )
    height, width = image.shape[-2:]
    factor = height // max(1, reference.shape[-2])
    small = (*image.shape[:-2], height // max(1, factor), width // max(1, factor))
    whole = small[-2] * factor == height and small[-1] * factor == width
    if not whole or reference.shape != small:
        raise ValueError(
            f"the reference {tuple(reference.shape)} is neither as large as the image "
            f"{tuple(image.shape)} nor smaller by a whole factor"
        )
    if method == "none":
        return image
    images, references = image.reshape(-1, *image.shape[-3:]), reference.reshape(-1, *small[-3:])
    correct = _wavelet if method == "wavelet" else _adain
    out = torch.empty_like(images)
    for one, wanted, result in zip(images, references, out, strict=True):
        correct(one, wanted.to(one), result, factor)
    return out.reshape(image.shape)


def _wavelet(image: Tensor, reference: Tensor, out: Tensor, factor: int) -> None:
    for top, bottom in _strips(image):
        # Rows that lie as far from the strip as the passes reach, inside the picture.
        above, below = max(0, top - _REACH), min(image.shape[-2], bottom + _REACH)
        rows = image[:, above:below].to(_precision(image))
        wanted = _enlarged_rows(reference, factor, above, below)
        corrected = rows + low_frequencies(wanted - rows)
        out[:, top:bottom] = corrected[:, top - above : bottom - above]


def low_frequencies(image: Tensor) -> Tensor:
    """Five smoothing passes with growing dilation over (C, H, W), edge pixels repeated."""
    for level in range(LEVELS):
        for axis in (-1, -2):  # the 3x3 kernel is the product of (1 2 1) / 4 with itself
            length = image.shape[axis]
            step = min(2**level, length)
            rest = length - step
            out = image * 0.5
            # Without padded copies: each neighbour where there is one, elsewhere the edge.
            out.narrow(axis, 0, rest).add_(image.narrow(axis, step, rest), alpha=0.25)
            out.narrow(axis, rest, step).add_(image.narrow(axis, length - 1, 1), alpha=0.25)
            out.narrow(axis, step, rest).add_(image.narrow(axis, 0, rest), alpha=0.25)
            out.narrow(axis, 0, step).add_(image.narrow(axis, 0, 1), alpha=0.25)
            image = out
    return image


def _adain(image: Tensor, reference: Tensor, out: Tensor, factor: int) -> None:
    mean, deviation = _statistics(image, image, 1)
    wanted_mean, wanted_deviation = _statistics(image, reference, factor)
    gain = wanted_deviation / deviation
    for top, bottom in _strips(image):
        rows = image[:, top:bottom].to(_precision(image))
        out[:, top:bottom] = rows * gain.to(rows) + (wanted_mean - mean * gain).to(rows)


def _statistics(image: Tensor, source: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (3, 1, 1) of ``source`` enlarged to ``image``, in float64."""
    count = image.shape[-1] * image.shape[-2]
    total, squares = torch.zeros(2, 3, 1, 1, dtype=torch.float64, device=image.device)
    for top, bottom in _strips(image):
        rows = _enlarged_rows(source, factor, top, bottom).double()
        total = total + rows.sum((-1, -2), keepdim=True)
        squares = squares + rows.square().sum((-1, -2), keepdim=True)
    mean = total / count
    return mean, (squares / count - mean.square()).clamp(min=0).add(_EPSILON).sqrt()


def _enlarged_rows(reference: Tensor, factor: int, top: int, bottom: int) -> Tensor:
    """Rows top..bottom of the bicubic enlargement of ``reference``, made from few of its rows."""
    if factor == 1:
        return reference[:, top:bottom].to(_precision(reference))
    # The kernel reaches two source rows up and down; one more, and the picture's edge stays one.
    first = max(0, top // factor - 3)
    last = min(reference.shape[-2], math.ceil(bottom / factor) + 3)
    rows = reference[None, :, first:last].to(_precision(reference))
    large = F.interpolate(rows, scale_factor=factor, mode="bicubic")[0]
    return large[:, top - first * factor : bottom - first * factor]


def _precision(image: Tensor) -> torch.dtype:
    return torch.promote_types(image.dtype, torch.float32)


def _strips(image: Tensor) -> list[tuple[int, int]]:
    height = image.shape[-2]
    step = max(1, _STRIP_PIXELS // image.shape[-1])
    return [(top, min(top + step, height)) for top in range(0, height, step)]
