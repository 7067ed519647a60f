"""Training views of a picture: crops, flips, CNNSpot's degradations, timm's RandAugment."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genimage.config import TrainConfig
from genimage.degradations import BlurJpeg
from genimage.index import Entry
from genimage.pictures import Geometry, from_tensor, to_tensor

if TYPE_CHECKING:
    from PIL.Image import Image

SPLITS = 3  # of AugMix: the picture as it is, and two augmented views
RAND_AUGMENT = "rand-m9-mstd0.5-inc1"


class Augment:
    """From a decoded picture to the uint8 pixels that a network is trained on.

    RandAugment draws from python's and numpy's global generators, which the loader seeds for each
    sample; everything else draws from the generator it is given.

    Args:
        geometry: the detector's, with the recipe's resize.
        config: view, augment, flip and their settings.
    """

    def __init__(self, geometry: Geometry, config: TrainConfig) -> None:
        self.geometry, self.view, self.flip = geometry, config.view, config.flip
        self.splits = SPLITS if config.augment == "augmix" else 1
        self.blur_jpeg = blur_jpeg_of(config)
        self.rand_augment: Any = None
        if config.augment in ("randaugment", "augmix"):
            from timm.data.auto_augment import rand_augment_transform

            grey = (124, 116, 104)  # ImageNet's mean fills what a rotation leaves empty
            self.rand_augment = rand_augment_transform(RAND_AUGMENT, {"img_mean": grey})
            for operation in self.rand_augment.ops:
                if operation.name.startswith("Posterize"):
                    operation.aug_fn = _posterize

    def __call__(self, sample: tuple[Image, int], generator: torch.Generator) -> tuple[Tensor, int]:
        """RGB picture and label -> uint8 (3, S, S), or (3, 3, S, S) with splits, and label."""
        picture, label = sample
        if self.blur_jpeg is not None:
            seed = int(torch.randint(2**31, (), generator=generator))
            if self.geometry.resize is not None:
                picture = _short_side(picture, self.geometry.resize)
            picture = self.blur_jpeg(picture, np.random.default_rng(seed))
        view = self._view(picture, generator)
        if self.flip and torch.rand((), generator=generator) < 0.5:
            view = view.flip(-1)
        if self.splits > 1:
            augmented = [self._augmented(view) for _ in range(self.splits - 1)]
            return torch.stack([view, *augmented]), label
        return view if self.rand_augment is None else self._augmented(view), label

    def _augmented(self, view: Tensor) -> Tensor:
        return to_tensor(self.rand_augment(from_tensor(view)))

    def _view(self, picture: Image, generator: torch.Generator) -> Tensor:
        if self.view == "random_resized":
            return to_tensor(random_resized_crop(picture, self.geometry.crop, generator))
        if self.view == "crop":
            return self.geometry.random_view(picture, generator)
        return self.geometry(picture)


def blur_jpeg_of(config: TrainConfig) -> BlurJpeg | None:
    """CNNSpot's augmentation, where a recipe has it."""
    if config.augment != "blur_jpeg":
        return None
    return BlurJpeg(config.augment_probability, config.augment_sigma, config.augment_quality)


@dataclass(frozen=True)
class InValidation:
    """CNNSpot's augmentation of validation pictures, a step before the geometry.

    The draws depend on the file's path: they are the same after each epoch.

    Attributes:
        blur_jpeg: of the recipe.
        geometry: whose resize comes first.
    """

    blur_jpeg: BlurJpeg
    geometry: Geometry

    def __call__(self, picture: Image, entry: Entry) -> Image:
        """RGB -> RGB, its short side that of the resize."""
        if self.geometry.resize is not None:
            picture = _short_side(picture, self.geometry.resize)
        seed = zlib.crc32(entry.path.encode())
        return self.blur_jpeg(picture, np.random.default_rng(seed), middle=True)


def _posterize(picture: Image, bits: int, **_: Any) -> Image:
    """timm's strongest posterize asks for 0 bits, which newer versions of Pillow refuse."""
    from PIL import ImageOps

    return picture if bits >= 8 else ImageOps.posterize(picture, max(bits, 1))


def _short_side(picture: Image, short: int) -> Image:
    """Bilinear, as CNNSpot resizes before it blurs."""
    from PIL import Image

    width, height = Geometry(short, short).sizes(*picture.size)
    return picture.resize((width, height), Image.Resampling.BILINEAR)


def random_resized_crop(picture: Image, side: int, generator: torch.Generator) -> Image:
    """A rectangle of 8 to 100 % of the area and ratio 3/4 to 4/3, resized to a square.

    Args:
        picture: any size.
        side: of the square.
        generator: of all draws; bilinear or bicubic is drawn too.
    """
    from PIL import Image

    width, height = picture.size

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    how = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)[int(uniform(0, 2))]
    for _ in range(10):
        area = width * height * uniform(0.08, 1)
        ratio = math.exp(uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(uniform(0, width - w + 1)), int(uniform(0, height - h + 1))
            return picture.resize((side, side), how, box=(left, top, left + w, top + h))
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    return picture.resize((side, side), how, box=(left, top, left + short, top + short))


def jensen_shannon_loss(
    splits: Tensor, labels: Tensor, *, smoothing: float, alpha: float = 12.0
) -> Tensor:
    """AugMix's loss: cross entropy of the clean split, and how far the splits disagree.

    ``CE(z_1, y) + alpha mean_i KL(p_i || mean p)``, the logarithm of the mean clamped at 1e-7.

    Args:
        splits: logits (B, n, 2), the clean split first.
        labels: (B,).
        smoothing: of the labels.
        alpha: weight of the divergence.

    Source: Hendrycks et al., AugMix (ICLR 2020), as timm has it.
    """
    loss = F.cross_entropy(splits[:, 0], labels, label_smoothing=smoothing)
    probabilities = splits.softmax(-1)
    mean = probabilities.mean(1).clamp(1e-7, 1).log()
    divergences = [
        F.kl_div(mean, probabilities[:, i], reduction="batchmean") for i in range(splits.shape[1])
    ]
    return loss + alpha * torch.stack(divergences).mean()
