"""CIFAR-10 as tensors, from either of its forms: the original archive or the mirror's packing."""

from __future__ import annotations

import io
import itertools
import pickle
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from papers_shared import assets

# class id -> name
CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


@dataclass(frozen=True)
class Cifar10:
    """One split, in the original order.

    Attributes:
        images: uint8 (N, 3, 32, 32), RGB.
        labels: int64 (N,), 0..9 (``CLASSES``).
        exact: bool (N,); False marks the few pictures of the mirror's packing of which only a
            JPEG copy could be had.
        form: ``mirror`` or ``original``.
        checksums: of the files read.
    """

    images: Tensor
    labels: Tensor
    exact: Tensor
    form: str
    checksums: dict[str, str]


def load_cifar10(
    split: Literal["train", "test"], *, path: Path | str | None = None, download: bool = True
) -> Cifar10:
    """Read a split; its files are found by the catalogue and verified before they are opened.

    Args:
        split: ``train`` (50,000 pictures) or ``test`` (10,000).
        path: a folder that holds ``cifar-10-python.tar.gz`` or ``cifar10_*.npz``, or the file.
        download: whether the original archive (170 MB) may be downloaded when nothing is found.

    Raises:
        FileNotFoundError: it is nowhere; the message says how to get it.
        ValueError: a file's checksum is wrong.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. No formal
    licence; offered for research.
    """
    found = assets.fetch(f"cifar10_{split}", path=path, download=download)
    read = _read_archive if found.form == "original" else _read_tiles
    parts = [part for file in found.files.values() for part in read(file, split)]
    images, labels, exact = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Cifar10(
        torch.from_numpy(images),
        torch.from_numpy(labels.astype(np.int64)),
        torch.from_numpy(exact),
        found.form,
        found.checksums,
    )


Part = tuple[np.ndarray, np.ndarray, np.ndarray]  # images (N, 3, 32, 32), labels, exact


def _read_tiles(file: Path, split: str) -> Iterator[Part]:
    """The mirror's packing: lossless WebP tiles of 100 pictures, one below the other."""
    from PIL import Image

    packed = np.load(file)  # plain arrays; allow_pickle stays off
    data, offsets = packed["webp"].tobytes(), packed["offsets"]
    tiles = [
        np.asarray(Image.open(io.BytesIO(data[start:stop])).convert("RGB"))
        for start, stop in itertools.pairwise(offsets)
    ]
    images = np.concatenate(tiles).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)
    yield np.ascontiguousarray(images), packed["y"], packed["exact"]


class _ArraysOnly(pickle.Unpickler):
    """CIFAR-10's batches are pickled dictionaries of one numpy array; nothing else is allowed."""

    allowed = frozenset({"_reconstruct", "ndarray", "dtype"})

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] != "numpy" or name not in self.allowed:
            raise ValueError(f"a CIFAR-10 batch asks for {module}.{name}; the archive is not used")
        if name == "_reconstruct":
            from numpy._core.multiarray import _reconstruct

            return _reconstruct
        return getattr(np, name)


def _read_archive(file: Path, split: str) -> Iterator[Part]:
    """The archive as published: data_batch_1..5 and test_batch, rows of 3072 bytes."""
    names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    with tarfile.open(file) as archive:
        for name in names:
            stream = archive.extractfile(f"cifar-10-batches-py/{name}")
            assert stream is not None  # the checksum says which archive this is
            batch = _ArraysOnly(stream, encoding="bytes").load()
            images = batch[b"data"].reshape(-1, 3, 32, 32)
            yield images, np.array(batch[b"labels"]), np.ones(len(images), dtype=bool)
