"""The degradations of blind super-resolution, as basicsr computes them, on torch tensors.

Images are RGB tensors (3, H, W); basicsr's are BGR arrays (H, W, 3), and it draws from the global
generators of Python and numpy. These wrappers translate both: with ``seed`` the generators are
seeded for the one call and put back after it, without it they go on from where they are. What is
drawn, and in which order, is basicsr's.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from papers_shared._basicsr import basicsr_module

Range = tuple[float, float]
KERNELS = {
    "gaussian": "bivariate_Gaussian",
    "generalized_gaussian": "bivariate_generalized_Gaussian",
    "plateau": "bivariate_plateau",
    "sinc": "circular_lowpass_kernel",
}


def blur_kernel(name: str, *, kernel_size: int, **parameters: float) -> Tensor:
    """A blur kernel of given shape.

    Args:
        name: ``gaussian`` (sig_x, sig_y, theta, isotropic), ``generalized_gaussian`` and
            ``plateau`` (the same and beta), or ``sinc`` (cutoff in radians, pad_to).
        kernel_size: odd number of pixels.
        parameters: as listed, in pixels and radians.

    Returns:
        float64 (kernel_size, kernel_size), or (pad_to, pad_to); adds up to 1.

    Raises:
        ValueError: an unknown name or parameter, or an even size.

    Source: basicsr 1.4.2, data/degradations.py; Real-ESRGAN, section 3.
    """
    if name not in KERNELS:
        raise ValueError(f"unknown blur kernel {name!r}; expected one of {', '.join(KERNELS)}")
    _check_odd(kernel_size)
    make = getattr(basicsr_module("data.degradations"), KERNELS[name])
    try:
        kernel = make(kernel_size=kernel_size, **parameters)
    except TypeError as error:
        raise ValueError(f"blur kernel {name}: {error}") from None
    return torch.from_numpy(np.ascontiguousarray(kernel))


def random_blur_kernel(
    probabilities: Mapping[str, float],
    *,
    kernel_size: int,
    sigma_range: Range = (0.6, 5.0),
    rotation_range: Range = (-math.pi, math.pi),
    generalized_beta_range: Range = (0.5, 8.0),
    plateau_beta_range: Range = (0.5, 8.0),
    noise_range: Range | None = None,
    seed: int | None = None,
) -> Tensor:
    """A blur kernel of random kind and shape.

    Args:
        probabilities: kind -> weight, in the order in which they are drawn; kinds: iso, aniso,
            generalized_iso, generalized_aniso, plateau_iso, plateau_aniso.
        kernel_size: odd number of pixels.
        sigma_range: of both axes, pixels.
        rotation_range: radians.
        generalized_beta_range: exponent of the generalized Gaussians.
        plateau_beta_range: exponent of the plateaus.
        noise_range: factors multiplied onto the kernel (never onto a plateau).
        seed: see the module's docstring.

    Returns:
        float64 (kernel_size, kernel_size), adds up to 1.

    Raises:
        ValueError: an unknown kind, or an even size.

    Source: basicsr 1.4.2, ``random_mixed_kernels``.
    """
    kinds = [f"{k}{form}" for k in ("", "generalized_", "plateau_") for form in ("iso", "aniso")]
    if not probabilities or set(probabilities) - set(kinds):
        raise ValueError(f"kernel kinds are {', '.join(kinds)}; got {list(probabilities)}")
    _check_odd(kernel_size)
    with _seeded(seed):
        kernel = basicsr_module("data.degradations").random_mixed_kernels(
            list(probabilities),
            list(probabilities.values()),
            kernel_size=kernel_size,
            sigma_x_range=sigma_range,
            sigma_y_range=sigma_range,
            rotation_range=rotation_range,
            betag_range=generalized_beta_range,
            betap_range=plateau_beta_range,
            noise_range=noise_range,
        )
    return torch.from_numpy(np.ascontiguousarray(kernel))


def random_gaussian_noise(
    image: Tensor,
    *,
    sigma_range: Range,
    grey_probability: float = 0.0,
    clip: bool = True,
    rounds: bool = False,
    seed: int | None = None,
) -> Tensor:
    """Add Gaussian noise whose deviation is drawn uniformly.

    Args:
        image: RGB (3, H, W), float in [0, 1].
        sigma_range: deviation in levels of 255; equal ends fix it.
        grey_probability: that one map serves all three channels.
        clip: the result to [0, 1].
        rounds: the result to multiples of 1/255.
        seed: see the module's docstring.

    Returns:
        float32 (3, H, W).

    Source: basicsr 1.4.2, ``random_add_gaussian_noise``.
    """
    add = basicsr_module("data.degradations").random_add_gaussian_noise
    with _seeded(seed):
        noisy = add(_to_bgr(image), sigma_range, grey_probability, clip=clip, rounds=rounds)
    return _from_bgr(noisy)


def random_poisson_noise(
    image: Tensor,
    *,
    scale_range: Range,
    grey_probability: float = 0.0,
    clip: bool = True,
    rounds: bool = False,
    seed: int | None = None,
) -> Tensor:
    """Add Poisson (shot) noise whose strength is drawn uniformly.

    Args:
        image: RGB (3, H, W), float in [0, 1].
        scale_range: factor onto the noise; 1 is the Poisson noise of as many levels as the image
            has, rounded up to a power of two.
        grey_probability: that the noise of the grey image is added to all three channels.
        clip: the result to [0, 1].
        rounds: the result to multiples of 1/255.
        seed: see the module's docstring.

    Returns:
        float32 (3, H, W).

    Source: basicsr 1.4.2, ``random_add_poisson_noise``.
    """
    add = basicsr_module("data.degradations").random_add_poisson_noise
    with _seeded(seed):
        noisy = add(_to_bgr(image), scale_range, grey_probability, clip=clip, rounds=rounds)
    return _from_bgr(noisy)


def jpeg(image: Tensor, quality: int) -> Tensor:
    """Compress and decompress with OpenCV's JPEG (4:2:0).

    Args:
        image: RGB (3, H, W), float in [0, 1]; clipped and rounded to 8 bits.
        quality: 1 to 100; whole (OpenCV 5 refuses a float).

    Returns:
        float32 (3, H, W), multiples of 1/255; libjpeg builds may differ by a few levels.

    Raises:
        ValueError: the quality is not a whole number from 1 to 100.

    Source: basicsr 1.4.2, ``add_jpg_compression``.
    """
    if int(quality) != quality or not 1 <= quality <= 100:
        raise ValueError(f"JPEG quality must be a whole number from 1 to 100, got {quality}")
    compress = basicsr_module("data.degradations").add_jpg_compression
    return _from_bgr(compress(_to_bgr(image), int(quality)))


def paired_random_crop(
    high: Tensor,
    low: Tensor,
    *,
    patch: int,
    scale: int,
    augment: bool = True,
    seed: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Cut the same random patch out of a pair, and mirror and transpose both alike.

    Args:
        high: (C, scale * H, scale * W), any dtype.
        low: (C, H, W).
        patch: side of the patch in pixels of ``high``.
        scale: the pair's factor.
        augment: horizontal flip, vertical flip and transposition, each with probability 1/2.
        seed: see the module's docstring.

    Returns:
        (C, patch, patch) of ``high`` and (C, patch // scale, patch // scale) of ``low``.

    Raises:
        ValueError: the sizes do not fit the scale, or the patch does not fit the image.

    Source: basicsr 1.4.2, ``paired_random_crop`` and ``augment``.
    """
    expected = tuple(scale * side for side in low.shape[-2:])
    if tuple(high.shape[-2:]) != expected or patch > min(expected) or patch % scale:
        raise ValueError(
            f"a {patch}x{patch} patch at scale {scale} does not fit high {tuple(high.shape)} and "
            f"low {tuple(low.shape)}: high must be {scale} times low, patch a multiple of {scale}"
        )
    transforms = basicsr_module("data.transforms")
    arrays = [t.permute(1, 2, 0).contiguous().numpy() for t in (high, low)]
    with _seeded(seed):
        # basicsr's augment flips in place, through OpenCV: it needs arrays of their own.
        crops = transforms.paired_random_crop(*arrays, patch, scale)
        crops = [crop.copy() for crop in crops]
        if augment:
            crops = transforms.augment(crops)
    out = [torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1) for crop in crops]
    return out[0], out[1]


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _check_odd(kernel_size: int) -> None:
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")


def _to_bgr(image: Tensor) -> np.ndarray:
    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise ValueError(
            f"expected an RGB image (3, H, W) of floats in [0, 1], got {tuple(image.shape)} "
            f"{image.dtype}"
        )
    return np.ascontiguousarray(image.float().flip(0).permute(1, 2, 0).numpy())


def _from_bgr(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).float().flip(-1).permute(2, 0, 1)
