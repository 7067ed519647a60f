"""The degradation of blind face restoration (GFPGAN's type), one order, the size kept.

Blur, shrink, Gaussian noise, JPEG, enlarge; now and then the pair becomes grey. As in
``real_esrgan``, every sample draws from its own generator.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from papers_shared.data.degradation_stages import Noise, add_noise, blur, resize
from papers_shared.data.degradations import Range, jpeg, random_blur_kernel
from papers_shared.data.real_esrgan import Dice, Generators, check_images, each_generator


@dataclass(frozen=True)
class FaceConfig:
    """How a face is degraded.

    Attributes:
        kernel_size: of the blur.
        kinds: of the blur -> weight (see ``random_blur_kernel``).
        sigma_range: of the blur, pixels.
        downsample_range: factor by which the sides are divided, the result rounded down.
        noise_range: deviation of the Gaussian noise in levels of 255.
        jpeg_range: quality; drawn real, its fraction dropped.
        grey_probability: that the pair becomes grey (0.299 R + 0.587 G + 0.114 B).

    Source: ResShift's and DiT-SR's face configurations.
    """

    kernel_size: int = 41
    kinds: tuple[tuple[str, float], ...] = (("iso", 0.5), ("aniso", 0.5))
    sigma_range: Range = (0.1, 15.0)
    downsample_range: Range = (0.8, 32.0)
    noise_range: Range = (0.0, 20.0)
    jpeg_range: Range = (30.0, 100.0)
    grey_probability: float = 0.01


@torch.no_grad()
def degrade_face(
    gt: Tensor, *, config: FaceConfig | None = None, generators: Generators
) -> tuple[Tensor, Tensor]:
    """Faces -> pairs of the same size.

    Args:
        gt: (B, 3, H, W) RGB floats in [0, 1], 512x512 in the papers; JPEG goes through the CPU.
        config: ``FaceConfig()`` unless given.
        generators: one ``torch.Generator`` or seed a sample; for B = 1 it may stand alone.

    Returns:
        gt (B, 3, H, W), grey where that was drawn, and lq (B, 3, H, W) in [0, 1], multiples of
        1/255.

    Raises:
        ValueError: a shape, a size, a range, or the number of generators.
        ImportError: basicsr is not installed.
    """
    config = config or FaceConfig()
    check_images(gt, config.kernel_size // 2 + 1)
    pairs = [
        _degrade_one(image, config, Dice(generator))
        for image, generator in zip(gt, each_generator(generators, len(gt)), strict=True)
    ]
    high, low = zip(*pairs, strict=True)
    return torch.stack(high), torch.stack(low)


def _degrade_one(gt: Tensor, config: FaceConfig, dice: Dice) -> tuple[Tensor, Tensor]:
    size = gt.shape[-2:]
    kernel = random_blur_kernel(
        dict(config.kinds),
        kernel_size=config.kernel_size,
        sigma_range=config.sigma_range,
        seed=dice.seed(),
    )
    image = blur(gt[None], kernel)
    factor = dice.uniform(*config.downsample_range)
    # At least one pixel remains of a picture smaller than the factor.
    image = resize(image, "bilinear", size=[max(1, int(side // factor)) for side in size])
    level = dice.uniform(*config.noise_range)
    image = add_noise(image, Noise("gaussian", level, grey=False, seed=dice.seed()))
    image = jpeg(image[0].cpu(), int(dice.uniform(*config.jpeg_range)))[None].to(gt)
    lq = resize(image, "bilinear", size=size)[0]
    if dice.chance(config.grey_probability):
        gt, lq = _grey(gt), _grey(lq)
    return gt, (lq.clamp(0, 1) * 255).round() / 255


def _grey(image: Tensor) -> Tensor:
    weights = image.new_tensor([0.299, 0.587, 0.114])
    return torch.einsum("chw,c->hw", image, weights).expand(3, -1, -1)
