"""GenImage's loader beside torchvision's ImageFolder: JPEG files to normalised batches, on a CPU.

``python benchmarks/genimage_loading.py`` prints a table and writes its figures to results/bench/.
Files of ImageNet's sizes are made from a seed. Both sides run in a DataLoader with the same number
of workers and end with a normalised float batch in the main process. ImageFolder's way is resize,
crop, ToTensor and Normalize of each picture (torchvision's own recipe); ours decodes straight to
bytes, resizes those, and normalises them as a batch. Rounds take turns; a ratio is the median of
the ratios within a round. No draft-mode decoding: it would discard the high frequencies.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from genimage.detectors import network_input
from genimage.index import open_index
from genimage.loading import Pictures, batches
from genimage.pictures import Geometry
from papers_shared.tables.benchmark import save_benchmark

SIZES = ((500, 375), (375, 500), (500, 333), (640, 480))
GEOMETRY = Geometry(224, 256, interpolation="bilinear")
BATCH = 32


def write_files(root: Path, count: int, *, seed: int) -> None:
    """``count`` JPEGs of quality 96 in both classes' folders, smooth with some noise."""
    from PIL import Image

    generator = np.random.default_rng(seed)
    for number in range(count):
        width, height = SIZES[number % len(SIZES)]
        rough = generator.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        smooth = Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)
        noise = generator.normal(0, 6, (height, width, 3))
        array = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
        folder = root / "made" / "val" / ("ai", "nature")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / f"{number:05d}.jpg", quality=96, subsampling=0)


def image_folder(root: Path, workers: int) -> Iterator[Tensor]:
    """torchvision: (B, 3, 224, 224) normalised."""
    from torchvision import transforms as T
    from torchvision.datasets import ImageFolder

    view = [T.Resize(256), T.CenterCrop(224), T.ToTensor()]
    normalise = T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    data = ImageFolder(str(root / "made" / "val"), T.Compose([*view, normalise]))
    for images, _ in DataLoader(data, batch_size=BATCH, num_workers=workers):
        yield images


def ours(root: Path, workers: int) -> Iterator[Tensor]:
    """The package's loader: the same batches."""
    entries = open_index(root).select()
    for images, _, _ in batches(
        Pictures(root, entries, GEOMETRY), batch_size=BATCH, workers=workers
    ):
        yield network_input(images, "imagenet")


def seconds(way: Callable[[Path, int], Iterator[Tensor]], root: Path, workers: int) -> float:
    """Of one pass over all files, the start of the workers included."""
    start = time.perf_counter()
    for batch in way(root, workers):
        batch.sum()
    return time.perf_counter() - start


def main() -> int:
    """Measure, print, and write results/bench/genimage_loading.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--files", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_files(root, args.files, seed=0)
        gap = torch.cat([(a - b).abs() for a, b in zip(ours(root, 0), image_folder(root, 0),
                                                       strict=True)])  # fmt: skip
        levels = 255 * 0.226  # of the mean standard deviation that Normalize divides by
        print(f"{'workers':>7} {'ImageFolder':>14} {'ours':>14} {'faster':>7}")
        for workers in (0, 1, 2):
            times: dict[str, list[float]] = {"torchvision": [], "genimage": []}
            for _ in range(args.rounds):
                times["torchvision"].append(seconds(image_folder, root, workers))
                times["genimage"].append(seconds(ours, root, workers))
            ratios = [a / b for a, b in zip(times["torchvision"], times["genimage"], strict=True)]
            rate = {name: args.files / statistics.median(t) for name, t in times.items()}
            results.append(
                {
                    "workers": workers,
                    "pictures_per_second": rate,
                    "times_faster": statistics.median(ratios),
                    "times_faster_lowest": min(ratios),
                    "times_faster_highest": max(ratios),
                }
            )
            print(
                f"{workers:7d} {rate['torchvision']:10.1f} i/s {rate['genimage']:10.1f} i/s "
                f"{results[-1]['times_faster']:6.2f}x",
                flush=True,
            )
    save_benchmark(
        "genimage_loading",
        {
            "files": args.files,
            "rounds": args.rounds,
            "mean_difference_in_levels": levels * gap.mean().item(),
            "largest_difference_in_levels": levels * gap.max().item(),
            "results": results,
        },
        distributions=["torch", "torchvision", "pillow"],
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
