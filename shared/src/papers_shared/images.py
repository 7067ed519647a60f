"""Photographs in and out: files <-> float tensors (C, H, W) in [0, 1], and RGB <-> YCbCr.

Pillow decodes and encodes. It reads 16-bit *colour* files at 8 bits, so these alone go through
OpenCV (``pip install opencv-python-headless``), and without it they are refused.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from papers_shared.checkpoints import atomic_path

if TYPE_CHECKING:
    from PIL import Image

Mode = Literal["rgb", "grey", "rgba", "stored"]
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


# --------------------------------------------------------------------------- files


def read_image(
    path: Path | str, *, mode: Mode = "rgb", truncated: Literal["error", "warn"] = "error"
) -> Tensor:
    """Read a photograph, upright (the EXIF orientation is applied).

    The format is told by the content, not by the suffix. Palettes are expanded, CMYK is converted
    without a colour profile, and of an animation the first frame is taken.

    Args:
        path: a file in any format that Pillow knows, 8 or 16 bits a channel.
        mode: ``rgb``: 3 channels, grey is repeated and alpha dropped (not blended);
            ``grey``: 1 channel, 0.299 R + 0.587 G + 0.114 B of colour files;
            ``rgba``: 4 channels, alpha is 1 where the file has none;
            ``stored``: 1 (grey), 2 (grey, alpha), 3 or 4 channels, as the file has them.
        truncated: what a JPEG file that ends too early does: ``error``, or ``warn``: it is decoded
            as far as it goes, the rest is what the decoder fills it with, and a warning names the
            file. One that has its end marker all the same is read in both modes, without a
            remark: Pillow does not tell.

    Returns:
        float32 (C, H, W) in [0, 1]: the stored integers divided by 255 or 65535.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image, is truncated, or its pixels are not integers; one line.
    """
    if mode not in ("rgb", "grey", "rgba", "stored"):
        raise ValueError(f"unknown mode {mode!r}; expected rgb, grey, rgba or stored")
    if truncated not in ("error", "warn"):
        raise ValueError(f"unknown truncated={truncated!r}; expected error or warn")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected an image to read")
    array, orientation = _decode(path, keep_truncated=truncated == "warn")
    return _to_tensor(array, orientation, mode)


def from_pil(picture: Image.Image, what: str = "the picture") -> Tensor:
    """An open Pillow picture -> float32 (3, H, W) in [0, 1], as ``read_image`` gives its file.

    Args:
        picture: grey, palette, alpha, CMYK, 16-bit grey; turned as its EXIF orientation says.
        what: begins an error.

    Raises:
        ValueError: its pixels are 32-bit numbers.
    """
    array = _pixels(picture, what)
    return _to_tensor(array, int(picture.getexif().get(0x0112, 1)), "rgb")


def write_image(image: Tensor, path: Path | str, *, bits: int = 8, quality: int = 95) -> None:
    """Write an image atomically: the file is there whole, or not at all.

    Args:
        image: (C, H, W) with C = 1 (grey), 3 (RGB) or 4 (RGBA); floating point in [0, 1] (clamped,
            rounded half to even) or uint8.
        path: the suffix decides the format (.png .jpg .webp .bmp .tif …).
        bits: a channel, 8 or 16; 16 is for PNG and TIFF.
        quality: of JPEG and WebP, 1 to 100.

    Raises:
        ValueError: the shape, a NaN, or a format that cannot hold the image.
        OSError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    array = _to_array(image, bits, path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a folder; create it to write {path.name}")
    data = _encode(array, path, quality)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def list_images(folder: Path | str, *, recursive: bool = False) -> list[Path]:
    """The image files of a folder, told by their suffix, sorted by name.

    Raises:
        FileNotFoundError: the folder does not exist or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; expected a folder of images")
    found = folder.rglob("*") if recursive else folder.iterdir()
    images = sorted(p for p in found if p.suffix.lower() in SUFFIXES and p.is_file())
    if not images:
        raise FileNotFoundError(f"{folder} holds no images ({' '.join(SUFFIXES)})")
    return images


def to_uint8(image: Tensor) -> Tensor:
    """[0, 1] floats of any shape -> uint8: clamped, times 255, rounded half to even."""
    return image.clamp(0, 1).mul(255).round().to(torch.uint8)


def _decode(path: Path, *, keep_truncated: bool) -> tuple[np.ndarray, int]:
    """Integers (H, W) or (H, W, C) as stored, palettes expanded, and the EXIF orientation."""
    from PIL import Image, UnidentifiedImageError

    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as picture:
            deep_colour = picture.mode in ("RGB", "RGBA", "LA") and _stored_bits(picture) == 16
            orientation = int(picture.getexif().get(0x0112, 1))
            if deep_colour:
                return _decode_16bit_colour(data, path), orientation
            return _pixels(picture, path), orientation
    except UnidentifiedImageError:
        raise ValueError(
            f"{path} is not an image in a known format (it begins with {data[:12]!r})"
        ) from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow tells of damaged files by OSError, and of damaged PNGs by SyntaxError too.
        cause = " ".join(str(error).split())
        if keep_truncated and (part := _decode_truncated_jpeg(data)) is not None:
            warnings.warn(f"{path} is truncated, read as far as it goes: {cause}", stacklevel=3)
            return _pixels(part, path), int(part.getexif().get(0x0112, 1))
        raise ValueError(f"{path} cannot be decoded, it is damaged or truncated: {cause}") from None


def _decode_truncated_jpeg(data: bytes) -> Image.Image | None:
    """What a truncated JPEG file holds; None if it is none, or not even its header is whole."""
    from PIL import Image

    # With an end marker the decoder makes do with what it has, progressive files included. Pillow's
    # own switch for truncated files is global.
    try:
        picture = Image.open(io.BytesIO(data + b"\xff\xd9"), formats=["JPEG"])
        picture.load()
    except (OSError, SyntaxError):
        return None
    return picture


def _to_tensor(array: np.ndarray, orientation: int, mode: Mode) -> Tensor:
    """Integers as stored -> floats (C, H, W) in [0, 1], upright."""
    full = 255 if array.dtype == np.uint8 else 65535
    image = torch.from_numpy(array.astype(np.float32) / full)
    image = image[None] if image.ndim == 2 else image.permute(2, 0, 1)
    return _convert(_upright(image, orientation), mode).contiguous()


def _pixels(picture: Image.Image, path: Path | str) -> np.ndarray:
    if picture.mode.startswith("I;16"):
        return np.asarray(picture).astype(np.uint16)
    if picture.mode in ("I", "F"):
        raise ValueError(
            f"{path} has pixels of kind {picture.mode!r} (32 bits), whose value range is not "
            f"known; convert it to 8 or 16 bits a channel"
        )
    see_through = "transparency" in picture.info
    if picture.mode in ("1", "L"):
        wanted = "LA" if see_through else "L"
    elif picture.mode in ("LA", "RGBA"):
        wanted = picture.mode
    else:
        wanted = "RGBA" if see_through or picture.mode in ("PA", "RGBa") else "RGB"
    return np.asarray(picture if picture.mode == wanted else picture.convert(wanted))


def _stored_bits(picture: Image.Image) -> int:
    # Pillow's name for the file's own layout of pixels, e.g. "RGB;16B", stands in the tile list,
    # which loading (getexif does it for PNG) empties.
    layouts = [tile[3] for tile in getattr(picture, "tile", ())]
    return 16 if ";16" in str(layouts) else 8


def _decode_16bit_colour(data: bytes, path: Path) -> np.ndarray:
    cv2 = opencv(f"{path} has 16 bits a channel")
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ValueError(f"{path} cannot be decoded, it is damaged or truncated")
    if array.ndim == 3:  # OpenCV's order is blue, green, red
        array = array[..., [2, 1, 0, 3][: array.shape[2]]]
    return array


def opencv(need: str) -> Any:
    """The module cv2; ``need`` begins the ImportError's message where it is not installed."""
    try:
        import cv2
    except ImportError:
        raise ImportError(
            f"{need}, which needs OpenCV: pip install opencv-python-headless"
        ) from None
    return cv2


def _upright(image: Tensor, orientation: int) -> Tensor:
    """Undo the EXIF orientation (1 to 8): transpose, then mirror."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(-1, -2)
    if orientation in (2, 3, 6, 7):
        image = image.flip(-1)
    if orientation in (3, 4, 7, 8):
        image = image.flip(-2)
    return image


def _convert(image: Tensor, mode: Mode) -> Tensor:
    if mode == "stored":
        return image
    colour, alpha = image, torch.ones_like(image[:1])
    if len(image) in (2, 4):
        colour, alpha = image[:-1], image[-1:]
    if mode == "grey":
        if len(colour) == 1:
            return colour
        return torch.einsum("chw,c->hw", colour, torch.tensor([0.299, 0.587, 0.114]))[None]
    colour = colour.expand(3, -1, -1)
    return colour if mode == "rgb" else torch.cat([colour, alpha])


def _to_array(image: Tensor, bits: int, path: Path) -> np.ndarray:
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(
            f"{path.name}: an image is (C, H, W) with 1, 3 or 4 channels, got {tuple(image.shape)}"
        )
    if bits not in (8, 16) or (bits == 16 and path.suffix.lower() not in (".png", ".tif", ".tiff")):
        raise ValueError(f"{path.name}: bits must be 8, or 16 for .png and .tif, got {bits}")
    if image.dtype == torch.uint8:
        if bits == 8:  # without floats, for large pictures
            array = image.detach().cpu().permute(1, 2, 0).numpy()
            return array[..., 0] if array.shape[2] == 1 else array
        image = image.float() / 255
    elif not image.is_floating_point():
        raise ValueError(f"{path.name}: expected floats in [0, 1] or uint8, got {image.dtype}")
    if not torch.isfinite(image).all():
        raise ValueError(f"{path.name}: the image holds NaN or infinite values")
    array = image.detach().cpu().permute(1, 2, 0).double().clamp(0, 1).numpy()
    whole = np.rint(array * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
    return whole[..., 0] if whole.shape[2] == 1 else whole


def _encode(array: np.ndarray, path: Path, quality: int) -> bytes:
    from PIL import Image

    if array.dtype == np.uint16:
        cv2 = opencv(f"{path} is to have 16 bits a channel")
        if array.ndim == 3:
            array = array[..., [2, 1, 0, 3][: array.shape[2]]]
        return cv2.imencode(path.suffix, array)[1].tobytes()
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise ValueError(f"{path.name}: cannot write {path.suffix or 'no suffix'!r}; use .png")
    stream = io.BytesIO()
    try:
        Image.fromarray(array).save(stream, kind, quality=quality)
    except OSError as error:  # for example RGBA as JPEG
        raise ValueError(f"{path.name}: {' '.join(str(error).split())}; use .png") from None
    return stream.getvalue()


# --------------------------------------------------------------------------- ITU-R BT.601

# Y, Cb, Cr of R, G, B in [0, 1], in levels of 255 (studio range: Y from 16 to 235).
_YCBCR_OF_RGB = (
    (65.481, 128.553, 24.966),
    (-37.797, -74.203, 112.0),
    (112.0, -93.786, -18.214),
)
_YCBCR_OFFSET = (16.0, 128.0, 128.0)
# R, G, B in levels of Y, Cb, Cr in levels, divided by 255. The rounded inverse that MATLAB ports
# use; the exact inverse differs in the sixth digit.
_RGB_OF_YCBCR = (
    (0.00456621, 0.0, 0.00625893),
    (0.00456621, -0.00153632, -0.00318811),
    (0.00456621, 0.00791071, 0.0),
)
_RGB_OFFSET = (-222.921, 135.576, -276.836)


def rgb_to_ycbcr(image: Tensor) -> Tensor:
    """RGB -> YCbCr of ITU-R BT.601, studio range, as MATLAB's ``rgb2ycbcr``.

    Args:
        image: (..., 3, H, W), floating point in [0, 1] or uint8.

    Returns:
        (..., 3, H, W) in the input's dtype: floats divided by 255 (Y from 16/255 to 235/255), or
        rounded uint8.

    Raises:
        ValueError: not three channels, or another dtype.
    """
    return _apply(image, _YCBCR_OF_RGB, _YCBCR_OFFSET)


def rgb_to_y(image: Tensor) -> Tensor:
    """The Y of ``rgb_to_ycbcr`` alone: (..., 3, H, W) -> (..., 1, H, W)."""
    return _apply(image, _YCBCR_OF_RGB[:1], _YCBCR_OFFSET[:1])


def ycbcr_to_rgb(image: Tensor, *, wrap: bool = False) -> Tensor:
    """YCbCr -> RGB, the inverse of ``rgb_to_ycbcr`` with MATLAB's rounded coefficients.

    Args:
        image: (..., 3, H, W), floating point (levels / 255) or uint8 levels.
        wrap: only for uint8: values outside 0..255 are taken modulo 256, as basicsr's
            ``ycbcr2rgb`` does on x86, instead of clipped.

    Returns:
        (..., 3, H, W) in the input's dtype; floats are not clipped.

    Raises:
        ValueError: not three channels, or another dtype.
    """
    matrix = tuple(tuple(255 * 255 * c for c in row) for row in _RGB_OF_YCBCR)
    return _apply(image, matrix, _RGB_OFFSET, wrap=wrap)


def _apply(
    image: Tensor,
    matrix: tuple[tuple[float, ...], ...],
    offset: tuple[float, ...],
    *,
    wrap: bool = False,
) -> Tensor:
    """``matrix`` on the channel axis of [0, 1] values; it and ``offset`` give levels of 255."""
    if image.ndim < 3 or image.shape[-3] != 3:
        raise ValueError(f"expected (..., 3, H, W), got {tuple(image.shape)}")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ValueError(f"expected floats in [0, 1] or uint8, got {image.dtype}")
    whole = image.dtype == torch.uint8
    # float32 before float64: the reference divides in float32, and rounding shows it.
    values = (image.float() / 255).double() if whole else image
    levels = torch.einsum("...chw,kc->...khw", values, values.new_tensor(matrix))
    levels = levels + values.new_tensor(offset)[:, None, None]
    if not whole:
        return levels / 255
    levels = levels.round().long()
    return (levels % 256 if wrap else levels.clamp(0, 255)).to(torch.uint8)
