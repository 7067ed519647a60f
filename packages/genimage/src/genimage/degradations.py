"""The paper's degradations, on the fly: low resolution, JPEG, blur; and CNNSpot's augmentation.

They act on the picture as it was read, before the detector's own transform (the order that
CNNSpot's code has; the paper does not say).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

KINDS = {"lr": "low resolution", "jpeg": "JPEG", "blur": "blur"}
# Table 5's columns.
PAPER = ("lr:112", "lr:64", "jpeg:65", "jpeg:30", "blur:3", "blur:5")


def gaussian_blur(array: np.ndarray, sigma: float) -> np.ndarray:
    """scipy's Gaussian on each channel, each pass written back as uint8 (which cuts, not rounds).

    The cut darkens the picture by about one grey level; that is what CNNSpot's code does.

    Args:
        array: uint8 (H, W, 3).
        sigma: in pixels.
    """
    from scipy.ndimage import gaussian_filter

    out = np.empty_like(array)
    for channel in range(array.shape[2]):
        gaussian_filter(array[..., channel], sigma=sigma, output=out[..., channel])
    return out


def jpeg(picture: Image, quality: int, *, subsampling: int = 2) -> Image:
    """Encoded by Pillow and decoded again.

    Args:
        picture: RGB.
        quality: 1 to 100.
        subsampling: 0 is 4:4:4, 1 is 4:2:2, 2 is 4:2:0 (what Pillow does unless told).
    """
    from PIL import Image

    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality, subsampling=subsampling)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def low_resolution(picture: Image, short: int) -> Image:
    """Bicubic (antialiased) until the short side has ``short`` pixels."""
    from PIL import Image

    factor = short / min(picture.size)
    size = tuple(max(1, round(side * factor)) for side in picture.size)
    return picture.resize(size, Image.Resampling.BICUBIC)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Degradation:
    """One of the paper's degradations, written ``lr:112``, ``jpeg:65`` or ``blur:3``."""

    kind: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Degradation:
        """From its name.

        Raises:
            ValueError: it is not one.
        """
        kind, _, value = text.partition(":")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if kind not in KINDS or number <= 0 or (kind == "jpeg" and not 1 <= number <= 100):
            raise ValueError(
                f"no degradation {text!r}; expected lr:SHORT_SIDE, jpeg:QUALITY or blur:SIGMA, "
                f"for example {' '.join(PAPER)}"
            )
        return cls(kind, number)

    def __str__(self) -> str:
        return f"{self.kind}:{self.value:g}"

    def __call__(self, picture: Image) -> Image:
        """RGB -> RGB; low resolution changes the size."""
        from PIL import Image

        if self.kind == "lr":
            return low_resolution(picture, round(self.value))
        if self.kind == "jpeg":
            return jpeg(picture, round(self.value))
        return Image.fromarray(gaussian_blur(np.asarray(picture), self.value))


@dataclass(frozen=True)
class BlurJpeg:
    """CNNSpot's augmentation: a blur, then a JPEG, each with its probability.

    Attributes:
        probability: of the blur, and of the JPEG.
        sigma: largest of the blur (0 to it, uniform).
        quality: lowest of the JPEG (it to 100, both included). Pillow's encoder; the authors take
            OpenCV's for every other picture, about a grey level apart.

    Source: Wang et al., CNN-generated images are surprisingly easy to spot (CVPR 2020).
    """

    probability: float = 0.5
    sigma: float = 3.0
    quality: int = 30

    def __call__(
        self, picture: Image, generator: np.random.Generator, *, middle: bool = False
    ) -> Image:
        """RGB -> RGB of the same size; every draw from ``generator``.

        Args:
            picture: RGB.
            generator: of the draws.
            middle: as in CNNSpot's validation: with the same probabilities, sigma and quality in
                the middle of their ranges.
        """
        from PIL import Image

        if generator.random() < self.probability:
            sigma = self.sigma / 2 if middle else generator.uniform(0, self.sigma)
            picture = Image.fromarray(gaussian_blur(np.asarray(picture), sigma))
        if generator.random() < self.probability:
            middle_quality = (self.quality + 100) // 2
            quality = middle_quality if middle else int(generator.integers(self.quality, 101))
            picture = jpeg(picture, quality)
        return picture
