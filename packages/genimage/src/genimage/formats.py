"""What a file says of how it was saved: format, size, JPEG quality, tables, sub-sampling."""

from __future__ import annotations

import functools
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genimage.pictures import Unreadable, damage_as_unreadable, frame_count

SUBSAMPLING = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}


@dataclass(frozen=True)
class Format:
    """A file's outside.

    Attributes:
        format: Pillow's name (PNG, JPEG, WEBP …).
        width, height: in pixels.
        mode: Pillow's mode (L, RGB, CMYK …).
        quality: of a JPEG, estimated by the closest IJG luminance table; else None.
        distance: mean square distance to that table; 0 is an encoder of the IJG family.
        tables: CRC32 of the quantization tables, 0 without.
        subsampling: ``4:4:4``, ``4:2:2``, ``4:2:0``, ``other`` or, not a JPEG, empty.
        progressive: of a JPEG.
        frames: more than one in animations.
        bytes: of the file.
    """

    format: str
    width: int
    height: int
    mode: str
    quality: int | None
    distance: float
    tables: int
    subsampling: str
    progressive: bool
    frames: int
    bytes: int


@functools.cache
def ijg_tables() -> np.ndarray:
    """(100, 64): the IJG luminance table of qualities 1 to 100.

    ``clip(floor((T s + 50) / 100), 1, 255)`` with T the table of quality 50 (read off Pillow's
    encoder) and s = 5000 // q below 50, else 200 - 2 q.
    """
    from PIL import Image

    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "JPEG", quality=50)
    half = np.array(Image.open(io.BytesIO(stream.getvalue())).quantization[0])  # type: ignore[attr-defined]
    scale = np.array([5000 // q if q < 50 else 200 - 2 * q for q in range(1, 101)])
    return np.clip((half * scale[:, None] + 50) // 100, 1, 255)


def jpeg_quality(luminance: Sequence[int]) -> tuple[int, float]:
    """Quality of the closest IJG table, and the mean square distance to it.

    Args:
        luminance: 64 values, in Pillow's order.
    """
    distances = ((ijg_tables() - np.asarray(luminance)) ** 2).mean(1)
    best = 99 - int(distances[::-1].argmin())  # the highest of equally close ones
    return best + 1, float(distances[best])


def read_format(picture: Any, size: int) -> Format:
    """Of a picture whose header is open (``pictures.open_header``); nothing is decoded.

    Args:
        picture: Pillow's.
        size: of the file, in bytes.

    Raises:
        Unreadable: the file is damaged.
    """
    with damage_as_unreadable():
        return _read_format(picture, size)


def _read_format(picture: Any, size: int) -> Format:
    kind = picture.format or ""
    quality, distance, tables, subsampling, progressive = None, 0.0, 0, "", False
    if kind in ("JPEG", "MPO"):
        kind = "JPEG"
        quantization = picture.quantization
        if not quantization:
            raise Unreadable("a JPEG without quantization tables")
        quality, distance = jpeg_quality(quantization[min(quantization)])
        flat = bytes(str([quantization[i] for i in sorted(quantization)]), "ascii")
        tables = zlib.crc32(flat)
        progressive = bool(picture.info.get("progressive") or picture.info.get("progression"))
        if len(picture.layer) == 3:
            from PIL.JpegImagePlugin import get_sampling

            subsampling = SUBSAMPLING.get(get_sampling(picture), "other")
    return Format(
        kind,
        picture.width,
        picture.height,
        picture.mode,
        quality,
        distance,
        tables,
        subsampling,
        progressive,
        frame_count(picture),
        size,
    )
