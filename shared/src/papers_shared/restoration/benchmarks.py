"""The test sets of restoration papers, picture by picture, in their usual layouts.

Set5, Set14, BSD100, CBSD68 and Kodak24 are assets of the catalogue; every set can be given as a
folder of the user's:

    super-resolution   FOLDER/HR/NAME.png with FOLDER/LR_bicubic/X4/NAMEx4.png (EDSR's archive)
                       or FOLDER/LR_x4/NAME.png
    denoising, JPEG    FOLDER/NAME.png, the clean pictures
    rain, blur         FOLDER/input/NAME.png with FOLDER/target/NAME.png (Restormer's), or
                       FOLDER/SCENE/blur/NAME.png with FOLDER/SCENE/sharp/NAME.png (GoPro's)
    SIDD               FOLDER/ValidationNoisyBlocksSrgb.mat with .../ValidationGtBlocksSrgb.mat

The set ``own`` is any folder of the user's: as above with any number of pictures, and for
super-resolution also FOLDER/NAME.png alone, which is then reduced.

Pictures are float32 (C, H, W) in [0, 1].
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from papers_shared import assets
from papers_shared.data.resize import imresize
from papers_shared.images import list_images, read_image, to_uint8


class Pair(NamedTuple):
    """One test case: what a network is given, and what it should give."""

    name: str
    degraded: Tensor
    clean: Tensor


@dataclass(frozen=True)
class BenchmarkSet:
    """A test set.

    Attributes:
        title: as papers print it.
        pictures: how many it has; a folder with another number is refused (0: any number).
        asset: of the catalogue; empty where the user has to give a folder.
        listing: file of the asset that names its pictures.
        source: where the set is had.
    """

    title: str
    pictures: int
    asset: str = ""
    listing: str = ""
    source: str = ""


_EDSR = "cv.snu.ac.kr/research/EDSR/benchmark.tar"
_BM3D = "the CBM3D page or the data links of Restormer (github.com/swz30/Restormer, Denoising)"
_JPEG = "the testsets folder of github.com/cszn/DnCNN or of SwinIR's releases"
_RAIN = "the data links of Restormer (github.com/swz30/Restormer, Deraining)"
SETS = {
    "own": BenchmarkSet("own pictures", 0, source="a folder of yours"),
    "set5": BenchmarkSet("Set5", 5, "set5", source=_EDSR),
    "set14": BenchmarkSet("Set14", 14, "set14", source=_EDSR),
    "bsd100": BenchmarkSet("B100", 100, "bsd100", "bsd100.txt", _EDSR),
    "urban100": BenchmarkSet("Urban100", 100, source=_EDSR),
    "manga109": BenchmarkSet("Manga109", 109, source="www.manga109.org, by registration"),
    "cbsd68": BenchmarkSet("CBSD68", 68, "cbsd68", "cbsd68.txt", _BM3D),
    "kodak24": BenchmarkSet("Kodak24", 24, "kodak24", source=_BM3D),
    "mcmaster": BenchmarkSet("McMaster", 18, source=_BM3D),
    "live1": BenchmarkSet("LIVE1", 29, source=_JPEG),
    "classic5": BenchmarkSet("Classic5", 5, source=_JPEG),
    "rain100l": BenchmarkSet("Rain100L", 100, source=_RAIN),
    "rain100h": BenchmarkSet("Rain100H", 100, source=_RAIN),
    "test100": BenchmarkSet("Test100", 98, source=_RAIN),
    "test1200": BenchmarkSet("Test1200", 1200, source=_RAIN),
    "test2800": BenchmarkSet("Test2800", 2800, source=_RAIN),
    "gopro": BenchmarkSet("GoPro", 1111, source="seungjunnah.github.io/Datasets/gopro"),
    "hide": BenchmarkSet("HIDE", 2025, source="github.com/joanshen0508/HA_deblur"),
}


def describe(name: str) -> BenchmarkSet:
    """The set called ``name``.

    Raises:
        ValueError: there is none; says which are.
    """
    if name not in SETS:
        raise ValueError(f"no test set is called {name!r}; known: {', '.join(SETS)}")
    return SETS[name]


@dataclass(frozen=True)
class SuperResolutionSet:
    """Low- and high-resolution pictures of a set; iterating reads them one by one.

    HR pictures are cut, at the top left, to a multiple of the scale. Grey ones become RGB, as the
    usual archives hold them.

    Attributes:
        name: of ``SETS``.
        scale: 2, 3 or 4.
        folder: the user's copy, instead of the catalogue's.

    Raises:
        FileNotFoundError: no picture is to be had; says where, and in which layout.
        ValueError: an unknown set, or one with another number of pictures.
    """

    name: str
    scale: int
    folder: Path | str | None = None
    paths: Sequence[Path] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", _pictures(self.name, self.folder, below="HR"))
        for path in self.paths:
            self._low_path(path)

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Pair]:
        for path in self.paths:
            high, low_path = read_image(path), self._low_path(path)
            height, width = (side // self.scale * self.scale for side in high.shape[-2:])
            high = high[:, :height, :width]
            if low_path is None:
                # MATLAB's reduction of the HR picture, stored as bytes.
                low = to_uint8(imresize(high.double(), 1 / self.scale)).float() / 255
            else:
                low = read_image(low_path)
            if tuple(s * self.scale for s in low.shape[-2:]) != (height, width):
                raise ValueError(
                    f"{low_path}: {tuple(low.shape[-2:])} pixels are not 1/{self.scale} of {path}"
                )
            yield Pair(path.stem, low, high)

    def _low_path(self, high: Path) -> Path | None:
        """The LR picture; None where the catalogue's set has none, and they are computed."""
        folder = high.parent.parent
        if self.folder is None and describe(self.name).listing:
            return None
        if self.name == "own" and high.parent.name != "HR":
            return None
        s = self.scale
        places = (
            folder / "LR_bicubic" / f"X{s}" / f"{high.stem}x{s}.png",
            folder / f"LR_x{s}" / f"{high.stem}.png",
        )
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise FileNotFoundError(f"no LR picture of {high}: neither {places[0]} nor {places[1]}")
        return found


@dataclass(frozen=True)
class CleanSet:
    """The clean pictures of a set; iterating gives (name, picture).

    Attributes:
        name: of ``SETS``.
        mode: ``rgb``, or ``grey``: OpenCV's grey (0.299 R + 0.587 G + 0.114 B) in whole levels,
            or ``luma``: Y of ITU-R BT.601 in whole levels; grey files stay as they are.
        folder: the user's copy, instead of the catalogue's.

    Raises:
        FileNotFoundError: no picture is to be had; says where.
        ValueError: an unknown set or mode, or a set with another number of pictures.
    """

    name: str
    mode: str = "rgb"
    folder: Path | str | None = None
    paths: Sequence[Path] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.mode not in ("rgb", "grey", "luma"):
            raise ValueError(f"mode is rgb, grey or luma, not {self.mode!r}")
        object.__setattr__(self, "paths", _pictures(self.name, self.folder))

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        from papers_shared.images import rgb_to_y

        for path in self.paths:
            if self.mode == "luma":
                picture = to_uint8(read_image(path, mode="stored"))
                picture = (picture[:1] if len(picture) < 3 else rgb_to_y(picture[:3])).float() / 255
            elif self.mode == "grey":
                picture = to_uint8(read_image(path, mode="grey")).float() / 255
            else:
                picture = read_image(path)
            yield path.stem, picture


@dataclass(frozen=True)
class PairedSet:
    """Degraded and clean files of a set (rain, blur); iterating reads them one by one.

    Attributes:
        name: of ``SETS``.
        folder: where the set lies, in Restormer's or GoPro's layout.

    Raises:
        FileNotFoundError: no folder, or a picture without its clean one.
        ValueError: an unknown set, or one with another number of pictures.
    """

    name: str
    folder: Path | str | None = None
    paths: Sequence[tuple[Path, Path]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        known = describe(self.name)
        folder = _given(self.name, self.folder, "input/NAME.png with target/NAME.png")
        if (folder / "input").is_dir():
            degraded, clean = list_images(folder / "input"), folder / "target"
            pairs = [(path, _partner(path, clean)) for path in degraded]
        else:
            scenes = sorted(p.parent for p in folder.glob("*/blur"))
            if not scenes:
                raise FileNotFoundError(
                    f"{folder} has neither input/ with target/, nor SCENE/blur with SCENE/sharp"
                )
            pairs = [
                (path, _partner(path, scene / "sharp"))
                for scene in scenes
                for path in list_images(scene / "blur")
            ]
        _check_count(known, len(pairs), folder)
        object.__setattr__(self, "paths", pairs)

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Pair]:
        for degraded, clean in self.paths:
            scene = f"{degraded.parent.parent.name}/" if degraded.parent.name == "blur" else ""
            yield Pair(scene + degraded.stem, read_image(degraded), read_image(clean))


@dataclass(frozen=True)
class SIDDValidation:
    """The 1280 validation blocks of SIDD (sRGB), 256 x 256; needs scipy.

    Attributes:
        folder: with ``ValidationNoisyBlocksSrgb.mat`` and ``ValidationGtBlocksSrgb.mat``
            (www.eecs.yorku.ca/~kamel/sidd/benchmark.php), uint8 (40, 32, 256, 256, 3).

    Raises:
        FileNotFoundError: no folder, or a file is missing.
        ImportError: scipy is missing.
        ValueError: a file holds something else.
    """

    folder: Path | str | None
    blocks: tuple[Any, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        names = ("ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb")
        if self.folder is None:
            raise FileNotFoundError(
                "SIDD's validation blocks are not in the catalogue: give --data sidd=FOLDER with "
                f"{names[0]}.mat and {names[1]}.mat of www.eecs.yorku.ca/~kamel/sidd/benchmark.php"
            )
        arrays = tuple(_mat(Path(self.folder) / f"{name}.mat", name) for name in names)
        if arrays[0].shape != arrays[1].shape:
            raise ValueError(f"{self.folder}: {arrays[0].shape} noisy, {arrays[1].shape} clean")
        object.__setattr__(self, "blocks", arrays)

    def __len__(self) -> int:
        return self.blocks[0].shape[0] * self.blocks[0].shape[1]

    def __iter__(self) -> Iterator[Pair]:
        noisy, clean = self.blocks
        for scene in range(noisy.shape[0]):
            for block in range(noisy.shape[1]):
                both = [
                    torch.from_numpy(a[scene, block]).permute(2, 0, 1).float() / 255
                    for a in (noisy, clean)
                ]
                yield Pair(f"{scene}/{block}", *both)


class First:
    """The first pictures of a set.

    Args:
        pictures: any of the sets above.
        count: how many; None: all.
    """

    def __init__(self, pictures: Any, count: int | None) -> None:
        self.pictures = pictures
        self.count = len(pictures) if count is None else min(count, len(pictures))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.pictures), self.count)


def _mat(path: Path, name: str) -> Any:
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}; SIDD's validation blocks come from "
            "www.eecs.yorku.ca/~kamel/sidd/benchmark.php"
        )
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ImportError("SIDD's .mat files need scipy: pip install scipy") from None
    array = loadmat(path).get(name)
    if array is None or array.ndim != 5 or array.shape[-1] != 3 or str(array.dtype) != "uint8":
        raise ValueError(f"{path} does not hold {name}, uint8 (scenes, blocks, H, W, 3)")
    return array


def _pictures(name: str, folder: Path | str | None, *, below: str = "") -> list[Path]:
    """The files of a set, in its order."""
    known = describe(name)
    if folder is None and known.asset:
        files = assets.fetch(known.asset).files
        if known.listing:
            names = files[known.listing].read_text(encoding="utf-8").split()
            return [files["val"] / f"{Path(n).stem}.jpg" for n in names]
        (root,) = files.values()
    else:
        root = _given(name, folder, f"{below}/NAME.png" if below else "NAME.png")
    if name == "own" and not (root / below).is_dir():
        below = ""
    paths = list_images(root / below)
    _check_count(known, len(paths), root)
    return paths


def _given(name: str, folder: Path | str | None, layout: str) -> Path:
    known = describe(name)
    if folder is None:
        raise FileNotFoundError(
            f"{known.title} is not in the catalogue; get it from {known.source} and pass its "
            f"folder, with {layout} below it"
        )
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; expected {known.title}: {layout}")
    return Path(folder)


def _partner(path: Path, folder: Path) -> Path:
    found = next(
        (p for p in (folder / path.name, *folder.glob(f"{path.stem}.*")) if p.is_file()), None
    )
    if found is None:
        raise FileNotFoundError(f"no clean picture of {path} in {folder}")
    return found


def _check_count(known: BenchmarkSet, count: int, folder: Path) -> None:
    if known.pictures and count != known.pictures:
        raise ValueError(
            f"{known.title} has {known.pictures} pictures, {folder} has {count}; another "
            "selection gives numbers that do not compare"
        )
