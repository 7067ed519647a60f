"""Pictures of an index in batches: decoded once, resized and cropped as bytes (uint8)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from genimage.degradations import jpeg
from genimage.index import Entry
from genimage.pictures import Geometry, Unreadable, decode, decode_jpeg

if TYPE_CHECKING:
    from PIL.Image import Image

UNREADABLE = -1
Before = Callable[["Image", Entry], "Image"]  # what is done to a picture before the geometry
SMALLER = 0.05  # share of a class's files that a matched table may leave out for a larger crop
_SUBSAMPLING = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


@dataclass(frozen=True)
class Matching:
    """Make both classes alike outside: crop, JPEG quality, sub-sampling, number of compressions.

    A file that was never a JPEG is compressed once as one of the data's JPEGs was, in full size;
    then every picture is cropped to one size and compressed by the same encoder.

    Attributes:
        crop: side of the square.
        left_out: files that are smaller than it.
        quality, subsampling: of the last compression.
        first: quality and sub-sampling of the data's JPEG files, of which one is drawn.
        seed: of that draw, which depends on the file's path.
    """

    crop: int
    left_out: int = 0
    quality: int = 96
    subsampling: int = 0
    first: tuple[tuple[int, int], ...] = ()
    seed: int = 0

    @classmethod
    def of(
        cls, entries: Sequence[Entry], *, quality: int = 96, seed: int = 0
    ) -> tuple[Matching, list[Entry]]:
        """For a test set: the matching, and the files that are large enough for it.

        The crop is the largest that all but ``SMALLER`` of the files of each class can give: a
        few small files do not decide on the whole table.
        """
        sides: dict[int, list[int]] = {}
        for e in entries:
            sides.setdefault(e.label, []).append(min(e.width, e.height))
        crop = min(sorted(found)[int(SMALLER * len(found))] for found in sides.values())
        kept = [e for e in entries if min(e.width, e.height) >= crop]
        first = tuple(
            (e.quality, _SUBSAMPLING.get(e.subsampling, 2)) for e in kept if e.quality is not None
        )
        left_out = len(entries) - len(kept)
        return cls(crop, left_out, quality=quality, first=first, seed=seed), kept

    def __str__(self) -> str:
        once = "never-compressed files compressed once like the data's JPEGs, then " * bool(
            self.first
        )
        smaller = f" ({self.left_out} smaller files left out)" * bool(self.left_out)
        return f"{once}centre crop {self.crop}{smaller}, JPEG {self.quality} 4:4:4, both classes"

    def __call__(self, picture: Image, entry: Entry) -> Image:
        """RGB -> RGB, crop x crop."""
        if self.first and entry.quality is None:
            digest = hashlib.blake2b(f"{self.seed} {entry.path}".encode(), digest_size=8).digest()
            quality, subsampling = self.first[int.from_bytes(digest, "little") % len(self.first)]
            picture = jpeg(picture, quality, subsampling=subsampling)
        left, top = (picture.width - self.crop) // 2, (picture.height - self.crop) // 2
        picture = picture.crop((left, top, left + self.crop, top + self.crop))
        return jpeg(picture, self.quality, subsampling=self.subsampling)


@dataclass(frozen=True)
class Sequential:
    """Several steps before the geometry, in order; picklable for the worker processes."""

    steps: tuple[Before, ...]

    def __call__(self, picture: Image, entry: Entry) -> Image:
        """RGB -> RGB."""
        for step in self.steps:
            picture = step(picture, entry)
        return picture


@dataclass(frozen=True)
class Degrade:
    """A degradation as a step."""

    degradation: Callable[[Image], Image]

    def __call__(self, picture: Image, entry: Entry) -> Image:
        """RGB -> RGB."""
        return self.degradation(picture)


class Pictures(Dataset):
    """Entries of an index as uint8 pixels.

    Args:
        root: of the index.
        entries: which.
        geometry: the detector's.
        before: done to each picture first.
    """

    def __init__(
        self,
        root: Path,
        entries: Sequence[Entry],
        geometry: Geometry,
        before: Before | None = None,
    ) -> None:
        self.root, self.entries = root, entries
        self.geometry, self.before = geometry, before

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, number: int) -> tuple[Tensor, int, int]:
        """Pixels uint8 (3, S, S) or (n, 3, S, S); label (``UNREADABLE`` of such files); number."""
        entry = self.entries[number]
        try:
            data = entry.read(self.root)
            # A JPEG in colour is decoded to the same values by either; this one is faster.
            image = decode_jpeg(data) if self.before is None and entry.subsampling else None
            picture: Any = decode(data) if image is None else image
            if self.before is not None:
                picture = self.before(picture, entry)
        except (Unreadable, OSError):
            crop, crops = self.geometry.crop, self.geometry.crops
            shape = (3, crop, crop) if crops == 1 else (crops, 3, crop, crop)
            return torch.zeros(shape, dtype=torch.uint8), UNREADABLE, number
        return self.geometry(picture), entry.label, number


def collate(samples: Sequence[tuple[Tensor, int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Samples -> a batch whose pixels lie in channels_last order, as they were decoded."""
    pixels, labels, numbers = zip(*samples, strict=True)
    stacked = torch.stack([p.movedim(-3, -1) for p in pixels])
    return stacked.movedim(-1, -3), torch.tensor(labels), torch.tensor(numbers)


def batches(
    pictures: Any, *, batch_size: int, workers: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Pixels (B, ...), labels (B,), numbers (B,), in order, the last batch smaller.

    Args:
        pictures: ``Pictures`` or anything alike.
        batch_size: B.
        workers: processes; their threads are held at one, so that so many cores are used.
    """
    loader = DataLoader(
        pictures,
        batch_size=batch_size,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        collate_fn=collate,
    )
    yield from loader
