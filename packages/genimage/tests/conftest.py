"""Fixtures of GenImage's tests: a tiny data set whose classes differ in their pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(autouse=True)
def seeded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    monkeypatch.setenv("PAPERS_CACHE", str(tmp_path / "cache"))


def picture(seed: int, size: tuple[int, int] = (40, 36), *, smooth: bool = False) -> Image.Image:
    """Noise, or (smooth) noise of half the size enlarged."""
    generator = np.random.default_rng(seed)
    width, height = (size[0] // 2, size[1] // 2) if smooth else size
    array = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(array).resize(size, Image.Resampling.BILINEAR)


@pytest.fixture
def make_picture() -> Callable[..., Image.Image]:
    return picture


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two generators, train and val, 12 + 12 pictures each: real ones JPEG, generated ones PNG."""
    root = tmp_path / "data"
    number = 0
    for generator in ("ADM", "home_made"):
        for mode in ("train", "val"):
            for label in ("ai", "nature"):
                folder = root / generator / mode / label
                folder.mkdir(parents=True)
                for i in range(12):
                    number += 1
                    made = picture(number, smooth=label == "ai")
                    if label == "ai":
                        made.save(folder / f"{i:03d}_tag_{i:05d}.PNG")
                    else:
                        made.save(folder / f"real_{i}.JPEG", quality=96, subsampling=0)
    return root
