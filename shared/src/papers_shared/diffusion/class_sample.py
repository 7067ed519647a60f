"""Pictures of classes, shared among processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from papers_shared.devices import pick_device
from papers_shared.diffusion.class_family import ClassFamily
from papers_shared.diffusion.class_options import ClassSampleConfig
from papers_shared.training.seeds import seed_from


def share_of_work() -> tuple[int, int]:
    """Which of how many processes this is, as torchrun and accelerate tell."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def labels_of(classes: Sequence[int], seeds: Sequence[int], num_classes: int) -> list[int]:
    """A label a seed: the classes in turns, or drawn evenly from a generator of the seed's own."""
    if classes:
        return [classes[i % len(classes)] for i in range(len(seeds))]
    generators = [torch.Generator().manual_seed(seed_from(seed, 1)) for seed in seeds]
    return [int(torch.randint(num_classes, (), generator=g)) for g in generators]


def grid_of(pictures: Sequence[Image.Image], *, columns: int, side: int = 64) -> Image.Image:
    """Pictures in rows, the small ones enlarged by whole factors to ``side`` at least."""
    factor = max(1, -(-side // pictures[0].width))
    width, height = pictures[0].width * factor, pictures[0].height * factor
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + 2) - 2, rows * (height + 2) - 2), "white")
    for i, picture in enumerate(pictures):
        enlarged = picture.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (i % columns * (width + 2), i // columns * (height + 2)))
    return sheet


def sample_pictures(
    config: ClassSampleConfig, family: ClassFamily, *, pipeline: Any = None
) -> list[int]:
    """Write this process's share of the pictures; returns the labels of all.

    Raises:
        ValueError: options do not fit, or a network of latents has no autoencoder.
    """
    from papers_shared.diffusion.class_pipeline import (
        ClassPipeline,
        guided_channels,
        load_class_pipeline,
    )

    count = len(config.classes) or 8 if config.count is None else config.count
    if count < 1 or config.batch_size < 1:
        raise ValueError(f"--count {count} --batch-size {config.batch_size}: expected 1 up")
    part, parts = share_of_work()
    if config.grid and parts > 1:
        raise ValueError("--grid is for one process")
    made = load_class_pipeline(
        family,
        config.weights,
        variant=config.variant,
        vae=config.vae,
        sampler=config.sampler,
        merge=config.merge,
        pipeline=pipeline or ClassPipeline,
    ).to(pick_device(config.device))
    options = made.transformer.options
    if made.vae is None and options.in_channels not in (1, 3):
        raise ValueError(
            f"{config.weights} makes latents; name their autoencoder with --vae ('taef2', or a "
            "folder; the authors' is stabilityai/sd-vae-ft-ema)"
        )
    if wrong := [c for c in config.classes if not 0 <= c < options.num_classes]:
        raise ValueError(f"class {wrong[0]}: this network has 0 .. {options.num_classes - 1}")
    guided = guided_channels(options.in_channels, config.guidance_channels)
    if part == 0 and config.guidance != 1:
        print(f"guidance {config.guidance:g} of {guided} of {options.in_channels} channels")
    seeds = [config.seed + i for i in range(count)]
    labels = labels_of(config.classes, seeds, options.num_classes)
    config.output.mkdir(parents=True, exist_ok=True)
    own = list(range(part, count, parts))
    made.set_progress_bar_config(disable=part != 0)
    for start in range(0, len(own), config.batch_size):
        batch = own[start : start + config.batch_size]
        pictures = made(
            [labels[i] for i in batch],
            config.guidance,
            num_inference_steps=config.steps,
            seeds=[seeds[i] for i in batch],
            guidance_channels=guided,
            mixed_precision=config.mixed_precision,
        ).images
        for i, picture in zip(batch, pictures, strict=True):
            picture.save(config.output / f"{i:06d}.png")
    return labels


def sample_and_tell(config: ClassSampleConfig, family: ClassFamily, *, pipeline: Any = None) -> int:
    """Write the pictures, and say where they lie."""
    labels = sample_pictures(config, family, pipeline=pipeline)
    if config.grid:
        names = [config.output / f"{i:06d}.png" for i in range(len(labels))]
        columns = len(config.classes) or 8
        _grid(names, columns).save(config.output / "grid.png")
    if share_of_work()[0] == 0:
        print(f"{len(labels)} pictures in {config.output}, classes {labels[:16]}")
    return 0


def _grid(files: Sequence[Path], columns: int) -> Image.Image:
    pictures = [Image.open(file) for file in files]
    return grid_of(pictures, columns=min(columns, len(pictures)))
