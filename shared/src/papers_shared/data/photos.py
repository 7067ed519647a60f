"""Photographs as training material: loading, cropping, and pairs of low and high resolution.

A photo is a uint8 tensor (3, H, W), RGB. All randomness comes from a generator or a seed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from papers_shared.assets import catalogue, fetch
from papers_shared.data.real_esrgan import TRAINING, RealESRGANConfig, degrade
from papers_shared.images import list_images, opencv, read_image, to_uint8

Crop = Literal["random", "rescale"]
SKIMAGE = "skimage"
# Colour photographs that lie inside scikit-image's package (others it would download).
_SKIMAGE_PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)


# --------------------------------------------------------------------------- loading


def load_photos(source: str | Path) -> list[Tensor]:
    """All photographs of a source, in memory.

    Args:
        source: see ``photo_files``.

    Returns:
        uint8 (3, H, W) each, sorted by file name.

    Raises:
        FileNotFoundError: no such folder, or no image in it; or the data set is not here.
        ValueError: a file cannot be decoded.
        ImportError: scikit-image is not installed.
    """
    return [to_uint8(read_image(path)) for path in photo_files(source)]


def photo_files(source: str | Path, *, recursive: bool = False) -> list[Path]:
    """The files of a source of photographs.

    Args:
        source: a folder; or the name of a data set of the catalogue, such as ``bsds500_train``
            or ``kodak24``, with the folder inside where it has several (``set5/HR``); or
            ``skimage``, the colour photographs that ship inside scikit-image's package.
        recursive: of a folder, also what lies in its subfolders.

    Returns:
        sorted by path.

    Raises:
        FileNotFoundError: no such folder, or no image in it; or the data set is not here.
        ImportError: scikit-image is not installed.
    """
    if source == SKIMAGE:
        return _skimage_files()
    if Path(source).is_dir():
        return list_images(source, recursive=recursive)
    name, _, inside = str(source).partition("/")
    if name in catalogue():
        folders = [path for path in fetch(name).files.values() if path.is_dir()]
        if len(folders) != 1:
            raise ValueError(f"{name} is not a folder of photos; name one that is")
        return list_images(folders[0] / inside)
    names = ", ".join([SKIMAGE, *sorted(catalogue())])
    raise FileNotFoundError(
        f"{source} is neither a folder of photos nor the name of a data set; names: {names}"
    )


def _skimage_files() -> list[Path]:
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise ImportError("photos 'skimage' need scikit-image: pip install scikit-image")
    folder = Path(package.origin).parent / "data"
    files = [folder / name for name in _SKIMAGE_PHOTOS if (folder / name).is_file()]
    if not files:
        raise FileNotFoundError(f"{folder} holds none of {', '.join(_SKIMAGE_PHOTOS)}")
    return files


class PhotoFiles(Sequence[Tensor]):
    """Photographs that stay in their files: each is decoded whenever it is asked for.

    Of a truncated JPEG file what is there is used, with a warning; see ``read_image``.

    Args:
        paths: of the files; a million takes about 100 MB.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = [str(path) for path in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        """uint8 (3, H, W), upright."""
        return to_uint8(read_image(self.paths[index], truncated="warn"))


def stored_size(path: Path | str) -> tuple[int, int]:
    """Height and width that a photo's header tells; nothing is decoded.

    The EXIF orientation is not looked at: upright, the two may be exchanged.

    Raises:
        ValueError: it is not an image that Pillow knows.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be opened: {' '.join(str(error).split())}") from None


# --------------------------------------------------------------------------- cropping


def random_crop(image: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """(C, H, W) -> a random square (C, size, size) of it, as a view.

    Raises:
        ValueError: the image is smaller than the square.
    """
    height, width = image.shape[-2:]
    if min(height, width) < size:
        raise ValueError(
            f"a {height}x{width} photo has no {size}x{size} crop; leave it out, or crop='rescale'"
        )
    top, left = (_randint(side - size + 1, generator) for side in (height, width))
    return image[..., top : top + size, left : left + size]


def rescale_crop(image: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A random square of the short side, shrunk to (C, size, size) by area averages.

    A photo whose sides are shorter than ``size`` is first continued by reflection, to the right
    and below.

    Args:
        image: uint8 (C, H, W).
        size: side of the result.
        generator: for the place of the square.

    Raises:
        ImportError: OpenCV is not installed.

    Source: ResShift's data set, ``rescale_gt``.
    """
    cv2 = opencv("crop 'rescale' shrinks by areas")
    array = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    missing = [max(0, size - side) for side in array.shape[:2]]
    if any(missing):
        array = cv2.copyMakeBorder(array, 0, missing[0], 0, missing[1], cv2.BORDER_REFLECT_101)
    padded = torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)
    square = random_crop(padded, min(array.shape[:2]), generator).permute(1, 2, 0)
    shrunk = cv2.resize(
        np.ascontiguousarray(square.numpy()), (size, size), interpolation=cv2.INTER_AREA
    )
    return torch.from_numpy(shrunk.reshape(size, size, -1)).permute(2, 0, 1).contiguous()


def random_flip(image: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror (..., H, W) left to right with probability 1/2."""
    return image.flip(-1) if _randint(2, generator) else image


CROPS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "random": random_crop,
    "rescale": rescale_crop,
}


def _randint(end: int, generator: torch.Generator) -> int:
    return int(torch.randint(end, (), generator=generator))


def _generator(*numbers: int) -> torch.Generator:
    """A generator that depends on all numbers (a seed and an index) and on their order."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)


class PhotoCrops:
    """A data set of fixed crops: item i is always the same, whatever else is drawn.

    Args:
        photos: uint8 (3, H, W) each; crop i comes from photo i modulo their number.
        size: side of a crop.
        count: number of crops; one a photo unless given.
        crop: ``random``, a square of the photo's own resolution; ``rescale``, see
            ``rescale_crop``.
        flip: mirror half of them.
        seed: crop i depends on (seed, i).

    Raises:
        ValueError: no photos, or an unknown ``crop``; a photo that is too small, when it is used.
    """

    def __init__(
        self,
        photos: Sequence[Tensor],
        *,
        size: int,
        count: int | None = None,
        crop: Crop = "random",
        flip: bool = True,
        seed: int = 0,
    ) -> None:
        if not len(photos):
            raise ValueError("no photos to crop")
        self.photos, self.seed = photos, seed
        self.count = len(photos) if count is None else count
        self._cut = _Cut(size=size, crop=crop, flip=flip)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        """uint8 (3, size, size)."""
        if not 0 <= index < self.count:
            raise IndexError(f"crop {index} of {self.count}")
        return self._cut(self.photos[index % len(self.photos)], _generator(self.seed, index))


@dataclass(frozen=True)
class _Cut:
    """Flip, then crop."""

    size: int
    crop: Crop
    flip: bool

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise ValueError(f"unknown crop {self.crop!r}; expected {' or '.join(CROPS)}")

    def __call__(self, photo: Tensor, generator: torch.Generator) -> Tensor:
        if photo.ndim != 3 or len(photo) != 3 or photo.dtype != torch.uint8:
            raise ValueError(f"a photo is uint8 (3, H, W), got {tuple(photo.shape)} {photo.dtype}")
        flipped = random_flip(photo, generator) if self.flip else photo
        return CROPS[self.crop](flipped, self.size, generator)


# --------------------------------------------------------------------------- pairs


@dataclass(frozen=True)
class PairTransform:
    """A photo -> a training pair; for ``Run.loader(..., transform=)``.

    Attributes:
        size: side of the crop, gt's side.
        scale: gt's side over lq's.
        config: the degradation.
        crop, flip: see ``PhotoCrops``; a photo of the right size stays whole.
    """

    size: int
    scale: int = 4
    config: RealESRGANConfig = TRAINING
    crop: Crop = "random"
    flip: bool = True

    def __call__(self, photo: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """uint8 (3, H, W) -> ``gt`` (3, size, size) and ``lq``, float32 in [-1, 1]."""
        cut = _Cut(size=self.size, crop=self.crop, flip=self.flip)(photo, generator)
        gt, lq = degrade(
            cut[None].float() / 255, config=self.config, scale=self.scale, generators=generator
        )
        return {"gt": gt[0] * 2 - 1, "lq": lq[0] * 2 - 1}


def make_pairs(
    photos: Sequence[Tensor],
    count: int,
    *,
    gt_size: int,
    scale: int = 4,
    config: RealESRGANConfig = TRAINING,
    seed: int = 0,
    crop: Crop = "random",
    flip: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """A pool of training pairs, computed once: pair i depends on (seed, i) and the photos.

    Args:
        photos: uint8 (3, H, W) each, used in turn.
        count: number of pairs.
        gt_size: side of gt, a multiple of ``scale``.
        scale: gt's side over lq's.
        config: the degradation.
        seed: of everything.
        crop, flip: see ``PhotoCrops``.
        progress: called with (pairs done, count) after each.

    Returns:
        gt uint8 (count, 3, gt_size, gt_size) and lq uint8 (count, 3, gt_size / scale, …).

    Raises:
        ValueError: a photo, or ``gt_size``, is too small.
    """
    crops = PhotoCrops(photos, size=gt_size, count=count, crop=crop, flip=flip, seed=seed)
    high = torch.empty(count, 3, gt_size, gt_size, dtype=torch.uint8)
    low = torch.empty(count, 3, gt_size // scale, gt_size // scale, dtype=torch.uint8)
    for index in range(count):
        high[index] = crops[index]
        # Unrelated to the crop's generator, and to that of any other pair.
        generator = _generator(seed, index, 1)
        _, lq = degrade(
            high[index][None].float() / 255, config=config, scale=scale, generators=generator
        )
        low[index] = to_uint8(lq[0])
        if progress is not None:
            progress(index + 1, count)
    return high, low


class Pair(NamedTuple):
    """A pair of a folder: floats (3, H, W) in [0, 1]; ``name`` is the file's stem."""

    name: str
    lq: Tensor
    gt: Tensor


class PairFolder:
    """The pairs of ``folder/lq`` and ``folder/gt`` (or ``hq``), paired by file name.

    Suffixes may differ (``a.png`` and ``a.jpg`` are a pair), names may not: no pairing by order.

    Args:
        folder: holds the two folders, for example ``val_sr`` or ImageNet-Test.

    Raises:
        FileNotFoundError: a folder is missing or empty.
        ValueError: a file without partner, or two files of one name; says which.
    """

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        high = folder / "hq" if (folder / "hq").is_dir() else folder / "gt"
        self._low, self._high = _by_stem(folder / "lq"), _by_stem(high)
        for here, there, place in (
            (self._low, self._high, high),
            (self._high, self._low, folder / "lq"),
        ):
            if missing := sorted(here.keys() - there.keys()):
                raise ValueError(
                    f"{here[missing[0]]} has no partner {missing[0]}.* in {place} "
                    f"({len(missing)} such files); the names in both folders must agree"
                )
        self.names = sorted(self._low)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Pair:
        """Pair number ``index`` in the order of the names."""
        name = self.names[index]
        return Pair(name, read_image(self._low[name]), read_image(self._high[name]))


def _by_stem(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in list_images(folder):
        if path.stem in files:
            raise ValueError(f"{path} and {files[path.stem].name} have one name; remove one")
        files[path.stem] = path
    return files
