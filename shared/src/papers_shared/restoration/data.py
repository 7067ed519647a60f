"""Training crops of restoration networks, and how their inputs are made.

Crops are cut from uint8 pictures and stay uint8 until they are a batch on the training device. What
is cheap only there (noise) is added there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from papers_shared.images import opencv
from papers_shared.restoration.commands import TrainConfig
from papers_shared.restoration.sources import (
    Pictures,
    pairs_of,
    photos_of,
    reduced_photos,
    whole_multiple,
)
from papers_shared.restoration.task import Task

Sample = tuple[Tensor | None, Tensor]
RAIN = "synthetic rain streaks (papers_shared.restoration.data.add_rain), not real rain"


class Photos:
    """A data set of whole pictures, each of them ``repeat`` times an epoch.

    Args:
        inputs: uint8 (C, h, w); None where the input is made of the target's crop.
        targets: uint8 (C, H, W).
        repeat: items a picture.

    Raises:
        ValueError: there are no pictures.
    """

    def __init__(self, inputs: Pictures | None, targets: Pictures, *, repeat: int = 1) -> None:
        if not len(targets):
            raise ValueError("no photos to train on")
        self.inputs, self.targets, self.repeat = inputs, targets, repeat

    def __len__(self) -> int:
        return len(self.targets) * self.repeat

    def __getitem__(self, index: int) -> Sample:
        picture = index % len(self.targets)
        low = None if self.inputs is None else self.inputs[picture]
        return low, self.targets[picture]


# --------------------------------------------------------------------------- crops


def crop_pair(
    low: Tensor | None, high: Tensor, *, patch: int, scale: int, generator: torch.Generator
) -> Sample:
    """The same random square of both, as views.

    Pictures smaller than it are first continued by reflection (``continued``).

    Args:
        low: (C, H / scale, W / scale), or None.
        high: (C, H, W).
        patch: side of the target's square, a multiple of ``scale``; the input's is patch / scale.
        scale: target's pixels an input pixel.
        generator: for the place.

    Raises:
        ValueError: the pictures do not fit each other.

    Source: Restormer's ``padding`` and ``paired_random_crop``.
    """
    height, width = (side // scale for side in high.shape[-2:])
    if low is not None and tuple(low.shape[-2:]) != (height, width):
        raise ValueError(
            f"an input of {low.shape[-2]}x{low.shape[-1]} pixels does not belong to a target of "
            f"{high.shape[-2]}x{high.shape[-1]} at scale {scale}"
        )
    side = patch // scale
    if min(height, width) < side:
        high = continued(high[..., : height * scale, : width * scale], patch)
        low = None if low is None else continued(low, side)
        height, width = max(height, side), max(width, side)
    top = int(torch.randint(height - side + 1, (), generator=generator))
    left = int(torch.randint(width - side + 1, (), generator=generator))

    def cut(image: Tensor, factor: int) -> Tensor:
        rows = slice(top * factor, (top + side) * factor)
        return image[..., rows, left * factor : (left + side) * factor]

    return None if low is None else cut(low, 1), cut(high, scale)


def continued(image: Tensor, least: int) -> Tensor:
    """(..., H, W), continued to the right and downwards until no side is below ``least``.

    By reflection, to and fro if need be. Edge pixels are repeated, so that an input and its larger
    target still belong together.
    """
    for axis in (-2, -1):
        side = image.shape[axis]
        if side < least:
            place = torch.arange(least) % (2 * side)
            image = image.index_select(axis, torch.minimum(place, 2 * side - 1 - place))
    return image


def view(image: Tensor, number: int) -> Tensor:
    """One of 8 flips and transpositions of (..., H, W); bits: left-right, up-down, transposed."""
    image = image.flip(-1) if number & 1 else image
    image = image.flip(-2) if number & 2 else image
    return image.transpose(-1, -2) if number & 4 else image


def jpeg(image: Tensor, quality: int) -> Tensor:
    """Write as JPEG, read again: uint8 (C, H, W) -> the same, OpenCV's codec, 4:2:0 in colour.

    Raises:
        ImportError: OpenCV is not installed.
    """
    cv2 = opencv("JPEG artifacts")
    array = image.permute(1, 2, 0).numpy()[..., ::-1]  # BGR; the only channel of grey stays
    encoded = cv2.imencode(
        ".jpg", np.ascontiguousarray(array), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )[1]
    grey = len(image) == 1
    decoded = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR)
    out = decoded.reshape(*decoded.shape[:2], -1)[..., ::-1].copy()
    return torch.from_numpy(out).permute(2, 0, 1)


def add_rain(image: Tensor, generator: torch.Generator) -> Tensor:
    """Synthetic rain: uint8 (C, H, W) -> the same with bright streaks of one direction.

    Sparse points (0.1 to 1 % of the pixels, each of random brightness) are smeared along a line
    of 10 to 30 pixels, up to 40 degrees off the vertical, and about 1.5 pixels wide; their
    brightness (at most 0.4 to 1) is added to all channels, and clipped.
    This is a model of our own: networks trained with it are to be called so.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    density, length = uniform(0.001, 0.01), uniform(10, 30)
    angle, strength = math.radians(uniform(-40, 40)), uniform(0.4, 1.0)
    half = 16  # the longest line's half, and its width
    across = torch.arange(-half, half + 1.0)
    y, x = across[:, None], across[None, :]
    along = (y * math.cos(angle) + x * math.sin(angle)).abs()
    aside = x * math.cos(angle) - y * math.sin(angle)
    kernel = (-aside.square() / (2 * 0.6**2)).exp() * (length / 2 - along).clamp(0, 1)
    height, width = (side + 2 * half for side in image.shape[-2:])
    points = torch.rand(2, height, width, generator=generator)
    drops = torch.where(points[0] < density, points[1], 0.0)
    streaks = F.conv2d(drops[None, None], kernel[None, None])[0]
    streaks = strength * streaks / streaks.max().clamp(min=1)
    return (image / 255 + streaks).clamp(0, 1).mul(255).round().to(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class Crops:
    """A whole picture -> a training crop; for ``Run.loader(..., transform=)``.

    Attributes:
        task: what is to be undone.
        patch: side of the target's crop.
        levels: lowest and highest level, uniform in between; JPEG qualities are whole numbers.
        augment: one of the 8 views. The JPEG is made of the view, so its blocks begin at the
            crop's corner, as a file's do.
    """

    task: Task
    patch: int
    levels: tuple[float, float] | None = None
    augment: bool = True

    def __call__(self, sample: Sample, generator: torch.Generator) -> dict[str, Tensor]:
        """``gt`` uint8 (C, patch, patch), and ``lq`` uint8 or, of noise, its ``sigma`` ()."""
        scale = self.task.scale
        low, high = crop_pair(*sample, patch=self.patch, scale=scale, generator=generator)
        if self.augment:
            number = int(torch.randint(8, (), generator=generator))
            low, high = None if low is None else view(low, number), view(high, number)
        high = high.contiguous()
        if self.task.kind == "denoise":
            assert self.levels is not None
            lowest, highest = self.levels
            sigma = lowest + (highest - lowest) * torch.rand((), generator=generator)
            return {"gt": high, "sigma": sigma}
        if self.task.kind == "dejpeg":
            assert self.levels is not None
            first, last = (int(level) for level in self.levels)
            low = jpeg(high, int(torch.randint(first, last + 1, (), generator=generator)))
        elif low is None:  # the configuration has refused all other tasks without inputs
            low = add_rain(high, generator)
        return {"gt": high, "lq": low.contiguous()}


# --------------------------------------------------------------------------- batches


def crop_batch(
    batch: dict[str, Tensor], *, patch: int, count: int, scale: int, grid: int = 1
) -> dict[str, Tensor]:
    """The first ``count`` crops, cut to ``patch`` at one random place (the global generator's).

    Progressive training loads its largest crops and batches throughout; so do its authors.

    Args:
        batch: what ``Crops`` makes, stacked.
        patch: side of the target's crops; nothing is drawn where they have it.
        count: of crops.
        scale: target's pixels an input pixel.
        grid: the place is a multiple of it, in input pixels.

    Source: Restormer's training, ``progressive learning``.
    """
    batch = {name: values[:count] for name, values in batch.items()}
    whole, side = batch["gt"].shape[-1] // scale, patch // scale
    if whole == side:
        return batch
    top, left = (torch.randint((whole - side) // grid + 1, (2,)) * grid).tolist()
    for name, factor in (("lq", 1), ("gt", scale)):
        if name in batch:
            rows = slice(top * factor, (top + side) * factor)
            batch[name] = batch[name][..., rows, left * factor : (left + side) * factor]
    return batch


def floats(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Input and target of a batch, float32 in [0, 1]; noise is drawn now and not clipped.

    The draws are those of the device's global generator, whose state a checkpoint holds.
    """
    gt = batch["gt"].float() / 255
    if "sigma" in batch:
        sigma = batch["sigma"][:, None, None, None] / 255
        return gt + sigma * torch.randn_like(gt), gt
    return batch["lq"].float() / 255, gt


def mix(low: Tensor, high: Tensor, *, probability: float) -> tuple[Tensor, Tensor]:
    """With ``probability``, blend every sample with another of the batch, inputs as targets.

    One weight, Beta(1.2, 1.2), a batch.

    Args:
        low, high: (B, C, H, W).

    Source: ipt_v2 sheet 4 (Restormer's denoising).
    """
    if torch.rand(()) >= probability:
        return low, high
    weight = float(torch.distributions.Beta(1.2, 1.2).sample())
    order = torch.randperm(len(low)).to(low.device)
    return tuple(torch.lerp(x[order], x, weight) for x in (low, high))  # type: ignore[return-value]


# --------------------------------------------------------------------------- a run's data


def training_data(
    config: TrainConfig,
    *,
    low_cache: Path,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Photos, Crops, str]:
    """Data set, transform, and a line on where the pairs come from, of a training run.

    Args:
        config: of the run.
        low_cache: folder of reduced photos.
        progress: of the reduction: (photos done, photos in all).

    Raises:
        FileNotFoundError, ValueError: photos or pairs are not here or do not fit.
    """
    task, patch = config.to_task(), max(stage.patch for stage in config.stages)
    cut = Crops(task=task, patch=patch, levels=config.level_range, augment=config.augment)
    if config.pairs:
        low, high = pairs_of(config.pairs, task)
        names = ", ".join(path.name for path in config.pairs)
        return Photos(low, high, repeat=config.repeat), cut, f"pairs of {names}"
    photos = photos_of(config.photos, task)
    # Without the places of folders: the line ends up in files that are passed on.
    names = ", ".join(Path(name).name if Path(name).exists() else name for name in config.photos)
    if task.kind != "sr":
        levels = " to ".join(f"{level:g}" for level in config.level)
        how = {"denoise": f"Gaussian noise of {levels}", "dejpeg": f"JPEG of quality {levels}"}
        described = f"{names}, {how.get(task.kind, RAIN)}"
        return Photos(None, photos, repeat=config.repeat), cut, described
    high = _Multiples(photos, task.scale)
    low = reduced_photos(high, task.scale, folder=low_cache, progress=progress)
    described = f"{names}, MATLAB's bicubic reduction"
    return Photos(low, high, repeat=config.repeat), cut, described


class _Multiples(Sequence[Tensor]):
    """Pictures without the rows and columns that the scale does not divide."""

    def __init__(self, photos: Pictures, scale: int) -> None:
        self.photos, self.scale = photos, scale

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: Any) -> Any:
        return whole_multiple(self.photos[index], self.scale)
