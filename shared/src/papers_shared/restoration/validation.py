"""A quick look at a network in training: PSNR over whole pictures. No paper's protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from papers_shared.inference import run_tiled
from papers_shared.metrics.restoration import PSNR, Channels
from papers_shared.restoration.commands import TrainConfig
from papers_shared.restoration.data import add_rain, jpeg
from papers_shared.restoration.family import Restorer
from papers_shared.restoration.sources import (
    has_pairs,
    pairs_of,
    photos_of,
    reduce,
    whole_multiple,
)
from papers_shared.restoration.task import Task

# Whole numbers of pixels, 0 to 1: (C, h, w) float32 and its target, uint8 (C, H, W).
Pair = tuple[Tensor, Tensor]


def degrade(photo: Tensor, task: Task, *, level: float | None, seed: int) -> Pair:
    """Input and target of a whole picture; the same for the same seed.

    Args:
        photo: uint8 (C, H, W), as the task's pictures are.
        task: any but deblur and real_denoise, whose inputs are files.
        level: of noise or JPEG.
        seed: of noise and rain.

    Returns:
        float32 (C, h, w) about [0, 1] (noise is not clipped), and uint8 (C, H, W).

    Raises:
        ValueError: the task cannot be made of a picture.
    """
    generator = torch.Generator().manual_seed(seed)
    if task.kind == "sr":
        photo = whole_multiple(photo, task.scale)
        return reduce(photo, task.scale).float() / 255, photo
    if task.kind == "denoise" and level is not None:
        noise = torch.randn(photo.shape, generator=generator) * (level / 255)
        return photo.float() / 255 + noise, photo
    if task.kind == "dejpeg" and level is not None:
        return jpeg(photo, int(level)).float() / 255, photo
    if task.kind == "derain":
        return add_rain(photo, generator).float() / 255, photo
    raise ValueError(f"the input of {task} is not made of a photo; give a folder of pairs")


def validation_pairs(config: TrainConfig) -> list[Pair]:
    """The pictures of ``config.validation``; a range of levels is judged in its middle.

    Raises:
        FileNotFoundError: they are not here.
        ValueError: they do not fit the task.
    """
    task, first = config.to_task(), config.validation_first
    if has_pairs(config.validation):
        inputs, targets = pairs_of([Path(config.validation)], task)
        count = len(targets) if first is None else min(first, len(targets))
        return [(inputs[i].float() / 255, targets[i]) for i in range(count)]
    photos = photos_of([config.validation], task)
    level = sum(config.level_range) / 2 if config.level_range else None
    count = len(photos) if first is None else min(first, len(photos))
    return [degrade(photos[i], task, level=level, seed=i) for i in range(count)]


@torch.no_grad()
def validation_psnr(restorer: Restorer, pairs: Sequence[Pair]) -> float:
    """Mean PSNR in dB of uint8 results: sr and derain on Y, else all channels; sr crops scale.

    Args:
        restorer: in eval mode.
        pairs: see ``degrade``.
    """
    task, multiple = restorer.task, restorer.family.multiple
    channels: Channels = "y" if task.kind in ("sr", "derain") and task.channels == 3 else "rgb"
    border = task.scale if task.kind == "sr" else 0
    psnr = PSNR(channels=channels, crop_border=border)
    device = next(restorer.parameters()).device
    values = []
    for low, high in pairs:
        # One tile that covers the picture.
        tile = -(-max(low.shape[-2:]) // multiple) * multiple
        image = run_tiled(
            lambda tiles, origins: restorer(tiles),
            low.to(device),
            scale=task.scale,
            tile=tile,
            overlap=restorer.family.overlap,
            multiple=multiple,
            dtype=torch.uint8,
        )
        values.append(float(psnr(image[None], high[None])))
    return sum(values) / len(values)
