"""Where the pictures of a restoration network's training come from: folders, data sets, lmdb.

Every source is a sequence of uint8 pictures (C, H, W): in memory, or decoded when asked for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from papers_shared.checkpoints import atomic_path
from papers_shared.data.photos import load_photos
from papers_shared.data.resize import imresize
from papers_shared.images import list_images, opencv, read_image, rgb_to_y, to_uint8
from papers_shared.restoration.task import Task

Pictures = Sequence[Tensor]
_FOLDERS = (("input", "target"), ("input_crops", "target_crops"))


def picture_of(photo: Tensor, task: Task) -> Tensor:
    """uint8 (3, H, W) RGB -> (C, H, W) as the task's pictures are.

    Grey is 0.299 R + 0.587 G + 0.114 B, as grey reading gives it; for JPEG artifacts it is the Y
    of BT.601, 16 to 235. Both rounded.
    """
    if task.channels == 3:
        return photo
    if task.kind == "dejpeg":
        return rgb_to_y(photo)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    return (photo * weights).sum(0, keepdim=True).round().to(torch.uint8)


class Files(Sequence[Tensor]):
    """Picture files, read when asked for.

    Args:
        paths: of the files.
        task: says how many channels.
    """

    def __init__(self, paths: Sequence[Path], task: Task) -> None:
        self.paths, self.task = list(paths), task

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        """uint8 (C, H, W)."""
        return picture_of(to_uint8(read_image(self.paths[index])), self.task)


class Lmdb(Sequence[Tensor]):
    """Encoded pictures in basicsr's lmdb layout: meta_info.txt beside data.mdb.

    Args:
        folder: ``NAME.lmdb``.
        task: says how many channels.

    Raises:
        FileNotFoundError: no such folder, or no meta_info.txt in it.
        ValueError: meta_info.txt is not basicsr's.
        ImportError: lmdb is not installed.
    """

    def __init__(self, folder: Path, task: Task) -> None:
        _lmdb()
        self.folder, self.task = folder, task
        meta = folder / "meta_info.txt"
        if not meta.is_file() or not (folder / "data.mdb").is_file():
            raise FileNotFoundError(
                f"{folder} has no data.mdb and meta_info.txt, as basicsr's create_lmdb writes them"
            )
        # A line: name.png (height,width,channels) compression
        lines = meta.read_text(encoding="utf-8").splitlines()
        found = [re.fullmatch(r"(.+) \((\d+),(\d+),\d+\)(?: \d+)?\s*", line) for line in lines]
        if not found or not all(found):
            raise ValueError(f"{meta} is not a list of 'name.png (height,width,channels) level'")
        self.names = [Path(match[1]).with_suffix("").as_posix() for match in found if match]
        self.sizes = [(int(match[2]), int(match[3])) for match in found if match]
        self._transaction: Any = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        """uint8 (C, H, W)."""
        if self._transaction is None:  # in each process its own: a database does not survive a fork
            environment = _lmdb().open(str(self.folder), readonly=True, lock=False)
            self._transaction = environment.begin(buffers=False)
        data = self._transaction.get(self.names[index].encode())
        if data is None:
            raise ValueError(f"{self.folder} holds no {self.names[index]}, meta_info.txt lists it")
        cv2 = opencv("pictures in an lmdb")
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if array is None:
            raise ValueError(f"{self.names[index]} in {self.folder} is not an encoded picture")
        photo = torch.from_numpy(np.ascontiguousarray(array[..., ::-1])).permute(2, 0, 1)
        return picture_of(photo, self.task)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_transaction": None}


def _lmdb() -> Any:
    try:
        import lmdb
    except ImportError:
        raise ImportError("pictures in an lmdb need the package: pip install lmdb") from None
    return lmdb


class Chain(Sequence[Tensor]):
    """Several sources, one after the other."""

    def __init__(self, parts: Sequence[Pictures]) -> None:
        self.parts = list(parts)
        self._where = [(part, i) for part in range(len(parts)) for i in range(len(parts[part]))]

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, index: Any) -> Any:
        part, inside = self._where[index]
        return self.parts[part][inside]


def photos_of(sources: Sequence[str], task: Task) -> Pictures:
    """The photos of all sources; those of folders and data sets in memory.

    Args:
        sources: see ``load_photos``; or a folder ``NAME.lmdb``.
        task: says how many channels.

    Raises:
        FileNotFoundError: a source is not here.
        ValueError: there is none, or a photo has no pixel left when it is reduced.
    """
    parts: list[Pictures] = []
    for source in sources:
        if str(source).endswith(".lmdb"):
            database = Lmdb(Path(source), task)
            sizes = database.sizes
            parts.append(database)
        else:
            photos = [picture_of(photo, task) for photo in load_photos(source)]
            sizes = [(photo.shape[1], photo.shape[2]) for photo in photos]
            parts.append(photos)
        if small := [size for size in sizes if min(size) < task.scale]:
            raise ValueError(
                f"{len(small)} of {len(sizes)} photos of {source} cannot be reduced {task.scale} "
                f"times, the first {small[0][0]}x{small[0][1]}; leave them out"
            )
    if not sources:
        raise ValueError("no photos; name folders or data sets with --photos")
    return Chain(parts)


def pairs_of(folders: Sequence[Path], task: Task) -> tuple[Pictures, Pictures]:
    """Inputs and targets of folders with ``input/`` and ``target/``, in natural order.

    Args:
        folders: each has input and target, or input_crops and target_crops.
        task: says how many channels.

    Raises:
        FileNotFoundError: a folder is missing or empty.
        ValueError: there are not as many inputs as targets.
    """
    inputs: list[Pictures] = []
    targets: list[Pictures] = []
    for folder in map(Path, folders):
        names = [pair for pair in _FOLDERS if (folder / pair[0]).is_dir()]
        low, high = (
            sorted(list_images(folder / name), key=_natural) for name in (names or _FOLDERS)[0]
        )
        if len(low) != len(high):
            raise ValueError(f"{folder} has {len(low)} inputs and {len(high)} targets; pair them")
        inputs.append(Files(low, task))
        targets.append(Files(high, task))
    return Chain(inputs), Chain(targets)


def has_pairs(source: str | Path) -> bool:
    """Whether it is a folder with ``input/`` and ``target/``."""
    return any((Path(source) / low).is_dir() for low, _ in _FOLDERS)


def _natural(path: Path) -> list[str | int]:
    """a2 before a10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def whole_multiple(photo: Tensor, scale: int) -> Tensor:
    """(C, H, W) without the last rows and columns that ``scale`` does not divide."""
    height, width = photo.shape[-2:]
    return photo[..., : height - height % scale, : width - width % scale]


def reduce(photo: Tensor, scale: int) -> Tensor:
    """uint8 (C, H, W), sides multiples of scale -> uint8, MATLAB's bicubic reduction, rounded."""
    return to_uint8(imresize(photo.float() / 255, 1 / scale))


def reduced_photos(
    photos: Pictures,
    scale: int,
    *,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[Tensor]:
    """``reduce`` of every photo, kept in a folder under the photo's checksum.

    Args:
        photos: uint8 (C, H, W).
        scale: by which sides are divided.
        folder: of the kept files; what is there is not computed again.
        progress: called with (photos done, photos in all) after each that was computed.
    """
    small = []
    for index in range(len(photos)):
        photo = whole_multiple(photos[index], scale)
        key = hashlib.sha256(np.ascontiguousarray(photo.numpy()).data).hexdigest()[:24]
        path = folder / f"{key}_{photo.shape[-2]}x{photo.shape[-1]}_x{scale}.npy"
        if not path.is_file():
            with atomic_path(path) as temporary, temporary.open("wb") as stream:
                np.save(stream, reduce(photo, scale).numpy())
            if progress is not None:
                progress(index + 1, len(photos))
        small.append(torch.from_numpy(np.load(path)))
    return small
