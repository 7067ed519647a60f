"""A benchmark in GenImage's layout from generators that can be had here; NOT GenImage.

Halved photos (real) and what each generator made of the same photos (generated), cut into squares
of 32 pixels and saved as PNG: same contents, sizes and formats on both sides, so that nothing but
the generator's traces tells them apart. Test squares come from other photos than training squares.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genimage.index import alone
from genimage.small_photos import GENERATORS, Photos, photos_of, remade
from papers_shared import assets

if TYPE_CHECKING:
    from PIL.Image import Image

Progress = Callable[[int, int, str], None]

SETTINGS: dict[str, Any] = {
    "train_photos": 24,
    "train_crops": 30,  # of each photo, real, and as many generated
    "val_photos": 10,
    "val_crops": 15,
    "side": 32,
}
ASSETS = ("bsds500_train", "bsd100", *(a for g in GENERATORS.values() for a in g.assets))


def squares(photos: Photos, count: int, *, side: int, seed: int) -> list[tuple[str, Image]]:
    """``count`` squares of each photo, drawn from a grid of squares that do not overlap."""
    out = []
    draw = random.Random(seed)
    for stem, photo in photos.items():
        cells = [
            (left, top)
            for top in range(0, photo.height - side + 1, side)
            for left in range(0, photo.width - side + 1, side)
        ]
        for left, top in sorted(draw.sample(cells, count)):
            box = (left, top, left + side, top + side)
            out.append((f"{stem}_{left:03d}_{top:03d}", photo.crop(box)))
    return out


def folder_of(settings: Mapping[str, Any], *, seed: int) -> Path:
    """Where the benchmark of these settings lies; the key covers the code that makes it."""
    digest = hashlib.sha256((json.dumps(dict(settings), sort_keys=True) + f" {seed}").encode())
    for name in ("small_set.py", "small_photos.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    return assets.cache_folder() / "genimage" / f"small_{digest.hexdigest()[:16]}"


def small_set(
    settings: Mapping[str, Any],
    sources: Mapping[str, Path],
    *,
    seed: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> Path:
    """The benchmark's folder, made where it is not there; an interrupted making goes on.

    Args:
        settings: ``SETTINGS``.
        sources: ``train`` and ``val`` -> folder of photos.
        seed: of the choice of squares.
        progress: called as ``progress(done, total, what)``.

    Raises:
        Needs: a package whose command generates is missing.
        FileNotFoundError: weights are missing.
    """
    root = folder_of(settings, seed=seed)
    for number, (name, generator) in enumerate(GENERATORS.items()):
        # One lock for all settings: they share what `remade` keeps.
        with alone(root.with_name(name)):
            if (root / name).is_dir():
                continue
            progress(number, len(GENERATORS), f"pictures of {generator.label}")
            part = root.with_name(f"{root.name}_{name}.part")
            shutil.rmtree(part, ignore_errors=True)
            for mode, source in sources.items():
                count = settings[f"{mode}_photos"]
                both = {"nature": photos_of(source, count), "ai": remade(name, source, count)}
                for offset, (label, photos) in enumerate(both.items()):
                    folder = part / mode / label
                    folder.mkdir(parents=True)
                    draw = 1000 * seed + 10 * number + offset
                    for stem, square in squares(
                        photos, settings[f"{mode}_crops"], side=settings["side"], seed=draw
                    ):
                        square.save(folder / f"{name}_{stem}.png")
            root.mkdir(parents=True, exist_ok=True)
            part.replace(root / name)
    return root


def mean_spectrum(pictures: Sequence[Image]) -> np.ndarray:
    """Mean log magnitude of the grey pictures' residues, zero frequency in the middle.

    A residue is a picture less its 3x3 mean, so that contents do not hide the traces.

    Args:
        pictures: of one size (S, S).

    Returns:
        (S, S).
    """
    from scipy.ndimage import uniform_filter

    total = None
    for picture in pictures:
        grey = np.asarray(picture.convert("L"), dtype=np.float64)
        residue = grey - uniform_filter(grey, 3)
        logs = np.log(np.abs(np.fft.fftshift(np.fft.fft2(residue))) + 1e-3)
        total = logs if total is None else total + logs
    if total is None:
        raise ValueError("no pictures")
    return total / len(pictures)


def source_folders() -> dict[str, Path]:
    """The folders of photos on this machine.

    Raises:
        FileNotFoundError: they are not here; the message says how to get them.
    """
    return {
        "train": assets.fetch("bsds500_train").path,
        "val": assets.fetch("bsd100").files["val"],
    }


if __name__ == "__main__":
    print(small_set(SETTINGS, source_folders()))
