"""Real-ESRGAN's two-order degradation, as ResShift, SinSR, DiT-SR and TAD-SR train on it.

A degradation is drawn first (``draw``: a ``Recipe`` of plain numbers) and applied after
(``apply``), so what happened to a picture can be looked at, stored and repeated.

The authors draw the kind of resizing, the kind of noise, the second order and the order of the
last steps once a GPU batch of 8, the rest once an image. Here every sample draws all of its own
from its own generator: the marginal distribution is the same, and a pair depends on its picture
and its seed alone, not on the batch size, the place in the batch or the number of workers.

Blur kernels, filtering and JPEG are basicsr's (``pip install 'papers-shared[basicsr]'``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from papers_shared.data.degradation_stages import Noise, add_noise, blur, jpeg, resize
from papers_shared.data.degradations import Range, blur_kernel, random_blur_kernel

Generators = torch.Generator | int | Sequence[torch.Generator | int]
Option = TypeVar("Option")
MODES = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class KernelConfig:
    """How a blur kernel is drawn.

    Attributes:
        padded_size: side of the kernel with its border of zeros; the sides drawn are the odd
            numbers from 3 to ``padded_size - 2``.
        sinc_probability: that it is a circular low-pass filter instead of one of ``kinds``.
        kinds: kind -> weight (see ``random_blur_kernel``).
        sigma_range: of both axes, pixels.
        generalized_beta_range, plateau_beta_range: exponents; above and below 1 are equally
            probable.
        rotation_range: radians.
    """

    padded_size: int
    sinc_probability: float
    kinds: tuple[tuple[str, float], ...] = (
        ("iso", 0.45),
        ("aniso", 0.25),
        ("generalized_iso", 0.12),
        ("generalized_aniso", 0.03),
        ("plateau_iso", 0.12),
        ("plateau_aniso", 0.03),
    )
    sigma_range: Range = (0.2, 3.0)
    generalized_beta_range: Range = (0.5, 4.0)
    plateau_beta_range: Range = (1.0, 2.0)
    rotation_range: Range = (-math.pi, math.pi)

    def __post_init__(self) -> None:
        if self.padded_size < 5 or self.padded_size % 2 == 0:
            raise ValueError(f"padded_size must be odd and at least 5, got {self.padded_size}")


@dataclass(frozen=True)
class OrderConfig:
    """One order of the degradation: blur, resize, noise, JPEG.

    Attributes:
        kernel: of the blur.
        blur_probability: that there is a blur.
        resize_probabilities: up, down, keep.
        resize_range: the smallest and the largest factor; 1 lies between.
        gaussian_probability: of Gaussian noise; Poisson noise otherwise.
        gaussian_range: deviation in levels of 255.
        poisson_range: factor onto the noise.
        grey_probability: that the noise is the same in all channels.
        jpeg_range: quality, real numbers.
    """

    kernel: KernelConfig
    blur_probability: float = 1.0
    resize_probabilities: tuple[float, float, float] = (0.2, 0.7, 0.1)
    resize_range: Range = (0.15, 1.5)
    gaussian_probability: float = 0.5
    gaussian_range: Range = (1.0, 30.0)
    poisson_range: Range = (0.05, 3.0)
    grey_probability: float = 0.4
    jpeg_range: Range = (30.0, 95.0)


@dataclass(frozen=True)
class RealESRGANConfig:
    """The whole degradation.

    Attributes:
        first, second: the two orders; ``second.jpeg_range`` is the last compression's, which
            takes place whether or not the second order does.
        second_probability: that the second order takes place.
        final_padded_size: of the last low-pass filter, see ``KernelConfig.padded_size``.
        final_sinc_probability: that there is a last low-pass filter.

    Source: ResShift's, DiT-SR's and TAD-SR's training configurations.
    """

    first: OrderConfig
    second: OrderConfig
    second_probability: float = 0.5
    final_padded_size: int = 15
    final_sinc_probability: float = 0.8

    def smallest_side(self, scale: int) -> int:
        """The smallest side of a picture that every filter fits (reflection needs the room)."""
        between = 0
        if self.second_probability and self.second.blur_probability:
            room = self.second.kernel.padded_size // 2 + 1
            between = math.ceil(room / min(1.0, self.first.resize_range[0]))
        last = scale * (self.final_padded_size // 2 + 1)
        return max(self.first.kernel.padded_size // 2 + 1, between, last)


# DiT-SR, TAD-SR, SinSR and ResShift train on this.
TRAINING = RealESRGANConfig(
    first=OrderConfig(KernelConfig(21, 0.1)),
    second=OrderConfig(
        KernelConfig(15, 0.1, sigma_range=(0.2, 1.5)),
        blur_probability=0.8,
        resize_probabilities=(0.3, 0.4, 0.3),
        resize_range=(0.3, 1.2),
        gaussian_range=(1.0, 25.0),
        poisson_range=(0.05, 2.5),
    ),
)
# The milder synthesis of ImageNet-Test: one order only. The published archive was drawn unseeded
# and cannot be regenerated.
_MILD_KINDS = (("iso", 0.6), ("aniso", 0.4))
TESTING = RealESRGANConfig(
    first=OrderConfig(
        KernelConfig(13, 0.1, kinds=_MILD_KINDS, sigma_range=(0.2, 0.8)),
        resize_range=(0.5, 1.5),
        gaussian_range=(1.0, 15.0),
        poisson_range=(0.05, 0.3),
        jpeg_range=(70.0, 95.0),
    ),
    second=OrderConfig(
        KernelConfig(7, 0.1, kinds=_MILD_KINDS, sigma_range=(0.2, 0.5)),
        jpeg_range=(80.0, 100.0),
    ),
    second_probability=0.0,
    final_padded_size=7,
    final_sinc_probability=0.2,
)


# --------------------------------------------------------------------------- recipes


@dataclass(frozen=True)
class Order:
    """What one order does; ``kernel`` None is no blur."""

    kernel: Tensor | None
    scale: float
    mode: str
    noise: Noise


@dataclass(frozen=True)
class Recipe:
    """All that was drawn for one picture.

    Attributes:
        first: the first order, ended by JPEG of quality ``jpeg``.
        jpeg: quality.
        second: the second order, or None.
        resize_first: whether the last steps are resize, sinc, JPEG; or JPEG, resize, sinc.
        final_mode: of the last resizing.
        final_kernel: the low-pass filter, None for none.
        final_jpeg: quality.
    """

    first: Order
    jpeg: float
    second: Order | None
    resize_first: bool
    final_mode: str
    final_kernel: Tensor | None
    final_jpeg: float


class Dice:
    """Plain random numbers of one generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float, high: float) -> float:
        unit = torch.rand(
            (), dtype=torch.float64, generator=self.generator, device=self.generator.device
        )
        return low + (high - low) * unit.item()

    def chance(self, probability: float) -> bool:
        return self.uniform(0.0, 1.0) < probability

    def pick(self, options: Sequence[Option], weights: Sequence[float] | None = None) -> Option:
        weights = weights or [1.0] * len(options)
        left = self.uniform(0.0, sum(weights))
        for option, weight in zip(options, weights, strict=True):
            left -= weight
            if left < 0:
                return option
        return options[-1]

    def seed(self) -> int:
        return int(self.uniform(0.0, 2.0**32))


def draw(config: RealESRGANConfig, generator: torch.Generator) -> Recipe:
    """Draw a degradation.

    Args:
        config: the distributions.
        generator: all draws come from it; it moves on by a number of draws that varies.

    Raises:
        ImportError: basicsr is not installed.
    """
    dice = Dice(generator)
    first = _draw_order(config.first, dice)
    jpeg_quality = dice.uniform(*config.first.jpeg_range)
    second = _draw_order(config.second, dice) if dice.chance(config.second_probability) else None
    final_kernel = None
    if dice.chance(config.final_sinc_probability):
        # Unlike the other low-pass kernels, one range of cutoffs for all sizes.
        final_kernel = _draw_sinc(dice, config.final_padded_size, widest=math.inf)
    return Recipe(
        first=first,
        jpeg=jpeg_quality,
        second=second,
        resize_first=dice.chance(0.5),
        final_mode=dice.pick(MODES),
        final_kernel=final_kernel,
        final_jpeg=dice.uniform(*config.second.jpeg_range),
    )


def _draw_order(config: OrderConfig, dice: Dice) -> Order:
    kernel = _draw_kernel(config.kernel, dice) if dice.chance(config.blur_probability) else None
    smallest, largest = config.resize_range
    direction = dice.pick(("up", "down", "keep"), config.resize_probabilities)
    limits = {"up": (1.0, largest), "down": (smallest, 1.0), "keep": (1.0, 1.0)}
    scale = dice.uniform(*limits[direction])
    mode = dice.pick(MODES)
    gaussian = dice.chance(config.gaussian_probability)
    level = dice.uniform(*(config.gaussian_range if gaussian else config.poisson_range))
    noise = Noise(
        kind="gaussian" if gaussian else "poisson",
        level=level,
        grey=dice.chance(config.grey_probability),
        seed=dice.seed(),
    )
    return Order(kernel=kernel, scale=scale, mode=mode, noise=noise)


def _draw_kernel(config: KernelConfig, dice: Dice) -> Tensor:
    if dice.chance(config.sinc_probability):
        return _draw_sinc(dice, config.padded_size, widest=13)
    size = dice.pick(range(3, config.padded_size, 2))
    kernel = random_blur_kernel(
        dict(config.kinds),
        kernel_size=size,
        sigma_range=config.sigma_range,
        rotation_range=config.rotation_range,
        generalized_beta_range=config.generalized_beta_range,
        plateau_beta_range=config.plateau_beta_range,
        seed=dice.seed(),
    )
    border = (config.padded_size - size) // 2
    return functional.pad(kernel, (border,) * 4)


def _draw_sinc(dice: Dice, padded_size: int, *, widest: float) -> Tensor:
    """A low-pass kernel; from a side of ``widest`` on, cutoffs down to pi/5 instead of pi/3."""
    size = dice.pick(range(3, padded_size, 2))
    cutoff = dice.uniform(math.pi / (3 if size < widest else 5), math.pi)
    return blur_kernel("sinc", kernel_size=size, cutoff=cutoff, pad_to=padded_size)


# --------------------------------------------------------------------------- the whole


def apply(gt: Tensor, recipe: Recipe, *, scale: int) -> Tensor:
    """Degrade one picture by a recipe.

    Args:
        gt: (3, H, W) RGB in [0, 1], sides multiples of ``scale``.
        recipe: from ``draw``.
        scale: factor between the sides of ``gt`` and of the result.

    Returns:
        (3, H / scale, W / scale) in [0, 1], multiples of 1/255.
    """
    low = (gt.shape[-2] // scale, gt.shape[-1] // scale)
    first = recipe.first
    image = gt[None]
    if first.kernel is not None:
        image = blur(image, first.kernel)
    image = resize(image, first.mode, scale=first.scale)
    image = jpeg(add_noise(image, first.noise), recipe.jpeg)
    if (second := recipe.second) is not None:
        if second.kernel is not None:
            image = blur(image, second.kernel)
        size = [int(side * second.scale) for side in low]
        image = add_noise(resize(image, second.mode, size=size), second.noise)
    if not recipe.resize_first:
        image = jpeg(image, recipe.final_jpeg)
    image = resize(image, recipe.final_mode, size=low)
    if recipe.final_kernel is not None:
        image = blur(image, recipe.final_kernel)
    if recipe.resize_first:
        image = jpeg(image, recipe.final_jpeg)
    return ((image[0].clamp(0, 1) * 255).round() / 255).contiguous()


@torch.no_grad()
def degrade(
    gt: Tensor, *, config: RealESRGANConfig = TRAINING, scale: int = 4, generators: Generators
) -> tuple[Tensor, Tensor]:
    """Pictures -> pairs of high and low resolution.

    Every sample draws all its choices from its own generator (the authors draw some of them once
    a batch, see the module), so a seed and a picture give the same pair in any batch.

    Args:
        gt: (B, 3, H, W) RGB floats in [0, 1], on any device.
        config: ``TRAINING``, ``TESTING`` or your own.
        scale: H and W are multiples of it.
        generators: one ``torch.Generator`` or seed a sample; for B = 1 it may stand alone.

    Returns:
        gt as given, and lq (B, 3, H / scale, W / scale) in [0, 1], multiples of 1/255.

    Raises:
        ValueError: a shape, a size, a range, or the number of generators.
        ImportError: basicsr is not installed.

    Source: Real-ESRGAN, section 3; ResShift's training code for the order of the steps.
    """
    check_images(gt, config.smallest_side(scale))
    if any(side % scale for side in gt.shape[-2:]):
        raise ValueError(f"the sides {list(gt.shape[-2:])} are not multiples of the scale {scale}")
    low = [
        apply(image, draw(config, generator), scale=scale)
        for image, generator in zip(gt, each_generator(generators, len(gt)), strict=True)
    ]
    return gt, torch.stack(low)


def each_generator(given: Generators, count: int) -> list[torch.Generator]:
    """One generator a sample; seeds become generators.

    Raises:
        ValueError: there are not ``count``.
    """
    listed = given if isinstance(given, Sequence) else [given]
    if len(listed) != count:
        raise ValueError(f"{count} samples need as many generators or seeds, got {len(listed)}")
    return [
        one if isinstance(one, torch.Generator) else torch.Generator().manual_seed(one)
        for one in listed
    ]


def check_images(gt: Tensor, smallest: int) -> None:
    """Refuse what is not (B, 3, H, W) in [0, 1] with sides of at least ``smallest``."""
    if gt.ndim != 4 or gt.shape[1] != 3 or not len(gt) or not gt.is_floating_point():
        raise ValueError(
            f"expected RGB floats (B, 3, H, W) in [0, 1], got {tuple(gt.shape)} {gt.dtype}"
        )
    height, width = gt.shape[-2:]
    if min(height, width) < smallest:
        raise ValueError(
            f"{height}x{width} is too small for this degradation, its filters need a side of "
            f"{smallest}; degrade a larger picture and crop the pair"
        )
    if not (gt.min() >= 0 and gt.max() <= 1):  # also false for NaN
        raise ValueError(
            f"expected values in [0, 1], got {gt.min().item():g} to {gt.max().item():g}"
        )
