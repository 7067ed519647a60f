"""Files -> pictures, and pictures -> the pixels that a network sees.

Bytes stay bytes (uint8) until they are on the network's device. JPEGs are always decoded in full:
Pillow's draft mode would discard the high frequencies that detectors read.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
MAX_PIXELS = 178_956_970  # above it Pillow takes a file for a decompression bomb


class Unreadable(ValueError):
    """A file that is no picture, or not a whole one; the message says why, in one line."""


@contextlib.contextmanager
def damage_as_unreadable() -> Iterator[None]:
    """Turn whatever Pillow raises at a damaged file (IndexError, struct.error, TypeError and
    SyntaxError among them) into ``Unreadable``.
    """
    try:
        yield
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(" ".join(str(error).split()) or type(error).__name__) from None


def open_header(data: bytes | Path) -> Any:
    """The picture of a file's bytes or path, its pixels not yet decoded.

    Raises:
        Unreadable: it is empty, no picture, or larger than ``MAX_PIXELS``.
    """
    from PIL import Image, UnidentifiedImageError

    size = len(data) if isinstance(data, bytes) else data.stat().st_size
    if size == 0:
        raise Unreadable("the file is empty")
    with damage_as_unreadable(), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            picture = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
        except UnidentifiedImageError:
            raise Unreadable("not a picture in a known format") from None
        except Image.DecompressionBombError:
            raise Unreadable(f"more than {MAX_PIXELS:,} pixels") from None
    if picture.width * picture.height > MAX_PIXELS:
        raise Unreadable(f"{picture.width}x{picture.height} is more than {MAX_PIXELS:,} pixels")
    return picture


def decode(data: bytes) -> Image:
    """A file's bytes -> RGB: the first frame; alpha is dropped, CMYK converted without a profile.

    Raises:
        Unreadable: it is no picture or not a whole one.
    """
    return as_rgb(open_header(data))


def frame_count(picture: Any) -> int:
    """Frames of a picture whose header is open; 1 where the format has no animations.

    Raises:
        Unreadable: a frame is cut off.
    """
    with damage_as_unreadable():
        return getattr(picture, "n_frames", 1)


def as_rgb(picture: Any) -> Image:
    """A picture whose header is open -> RGB, as ``decode`` says; nothing is turned by EXIF.

    Raises:
        Unreadable: it is damaged, or its values have no known range.
    """
    from PIL import Image

    with damage_as_unreadable():
        picture.load()
        if picture.mode.startswith("I;16"):
            return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
        if picture.mode in ("I", "F"):
            raise Unreadable(f"pixels of kind {picture.mode!r}, whose value range is not known")
        if picture.mode == "P" and "transparency" in picture.info:
            picture = picture.convert("RGBA")
        return picture if picture.mode == "RGB" else picture.convert("RGB")


def open_picture(path: Path | str) -> Image:
    """``decode`` of a file.

    Raises:
        FileNotFoundError: there is none.
        Unreadable: it is no picture.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected a picture")
    return decode(path.read_bytes())


def decode_jpeg(data: bytes) -> Tensor | None:
    """A colour JPEG's bytes -> uint8 (3, H, W), the values of ``decode``, sooner.

    None where ``decode`` has to look: at a file without its end marker, which torchvision would
    fill up, and at one that it refuses.
    """
    from torchvision.io import ImageReadMode
    from torchvision.io import decode_jpeg as read

    if b"\xff\xd9" not in data[-32:]:
        return None
    try:
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return read(buffer, mode=ImageReadMode.RGB)
    except RuntimeError:
        return None


def to_tensor(picture: Image) -> Tensor:
    """RGB picture -> uint8 (3, H, W), in channels_last order as decoded."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def from_tensor(image: Tensor) -> Image:
    """uint8 (3, H, W) -> RGB picture."""
    from PIL import Image

    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


Interpolation = Literal["bilinear", "bicubic", "plain"]


@dataclass(frozen=True)
class Geometry:
    """How a picture of any size becomes the square that a network sees.

    Attributes:
        crop: side of the square.
        resize: the short side before the crop; None: crop the picture as it is (one too small is
            enlarged until it fits).
        interpolation: of the resize; ``plain`` is OpenCV's bilinear, without antialiasing.
        square: resize to a square, whatever the sides' ratio (Spec, GramNet's authors).
        crops: squares taken, spread evenly over the picture; a verdict is their mean.
    """

    crop: int
    resize: int | None = None
    interpolation: Interpolation = "bicubic"
    square: bool = False
    crops: int = 1

    def __str__(self) -> str:
        if self.resize is None:
            how = "no resize"
        elif self.square:
            how = f"resize to {self.resize}x{self.resize} ({self.interpolation})"
        else:
            how = f"short side {self.resize} ({self.interpolation})"
        many = f"{self.crops} crops" if self.crops > 1 else "centre crop"
        return f"{how}, {many} {self.crop}"

    def crop_only(self) -> Geometry:
        """The same square without the resize."""
        return replace(self, resize=None, square=False)

    def sizes(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after the resize, by torchvision's rounding."""
        if self.square and self.resize is not None:
            return self.resize, self.resize
        short = self.resize
        if short is None:
            if min(width, height) >= self.crop:
                return width, height
            short = self.crop
        if width <= height:
            return short, int(short * height / width)
        return int(short * width / height), short

    def offsets(self, width: int, height: int) -> list[tuple[int, int]]:
        """Left and top of each crop in a resized picture."""
        free_x, free_y = width - self.crop, height - self.crop
        if self.crops == 1:
            return [(round(free_x / 2), round(free_y / 2))]
        # Always as many, so that pictures of all sizes make one batch: the grid whose cells are
        # closest to squares.
        columns = min(
            (n for n in range(1, self.crops + 1) if self.crops % n == 0),
            key=lambda n: abs(math.log((free_x + 1) / n * (self.crops // n) / (free_y + 1))),
        )
        rows = self.crops // columns
        return [
            (round(free_x * (c + 0.5) / columns), round(free_y * (r + 0.5) / rows))
            for r in range(rows)
            for c in range(columns)
        ]

    def __call__(self, picture: Image | Tensor) -> Tensor:
        """RGB picture, or uint8 (3, H, W) -> uint8 (3, crop, crop), or (n, 3, crop, crop).

        The pixels are those of torchvision's Resize and CenterCrop on a Pillow picture, to within
        a grey level: torch's resize of bytes takes half of Pillow's time.
        """
        image = self._resized(picture)
        height, width = image.shape[-2:]
        views = [self._cut(image, *at) for at in self.offsets(width, height)]
        return views[0] if self.crops == 1 else torch.stack(views)

    def random_view(self, picture: Image | Tensor, generator: torch.Generator) -> Tensor:
        """A crop anywhere (after the resize): uint8 (3, crop, crop)."""
        image = self._resized(picture)
        top, left = (
            int(torch.randint(side - self.crop + 1, (), generator=generator))
            for side in image.shape[-2:]
        )
        return self._cut(image, left, top)

    def _cut(self, image: Tensor, left: int, top: int) -> Tensor:
        return image[:, top : top + self.crop, left : left + self.crop]

    def _resized(self, picture: Image | Tensor) -> Tensor:
        image = picture if isinstance(picture, Tensor) else to_tensor(picture)
        height, width = image.shape[-2:]
        new_width, new_height = self.sizes(width, height)
        if (new_width, new_height) == (width, height):
            return image
        size = (new_height, new_width)
        if self.interpolation == "plain":
            # torch's rule for bytes rounds otherwise than OpenCV's
            resized = F.interpolate(image[None].float(), size, mode="bilinear", align_corners=False)
            return resized[0].round().to(torch.uint8)
        return F.interpolate(image[None], size, mode=self.interpolation, antialias=True)[0]
