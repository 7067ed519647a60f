"""Pictures of classes: ``u-dit sample --weights runs/u_dit/model_ema.safetensors``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from papers_shared.training.seeds import seed_from
from u_dit.config import SampleConfig
from u_dit.pipeline import load_pipeline


def pick_device(name: str) -> torch.device:
    """``auto`` is a GPU when there is one.

    Raises:
        ValueError: cuda was asked for and is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device is visible to torch; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def labels_of(classes: Sequence[int], seeds: Sequence[int], num_classes: int) -> list[int]:
    """A label a seed: the classes in turns, or drawn evenly from a generator of the seed's own."""
    if classes:
        return [classes[i % len(classes)] for i in range(len(seeds))]
    generators = [torch.Generator().manual_seed(seed_from(seed, 1)) for seed in seeds]
    return [int(torch.randint(num_classes, (), generator=g)) for g in generators]


def main(config: SampleConfig) -> int:
    """Write the pictures, and say where they lie."""
    if config.count < 1 or config.batch_size < 1:
        raise ValueError(f"--count {config.count} --batch-size {config.batch_size}: expected 1 up")
    device = pick_device(config.device)
    pipeline = load_pipeline(
        config.weights,
        variant=config.variant,
        vae=config.vae,
        sampler=config.sampler,
        merge=config.merge,
    ).to(device)
    if pipeline.vae is None and pipeline.transformer.options.in_channels not in (1, 3):
        raise ValueError(
            f"{config.weights} makes latents; name the folder of their autoencoder with --vae "
            "(the authors' is stabilityai/sd-vae-ft-ema)"
        )
    seeds = [config.seed + i for i in range(config.count)]
    labels = labels_of(config.classes, seeds, pipeline.transformer.options.num_classes)
    config.output.mkdir(parents=True, exist_ok=True)
    for start in range(0, config.count, config.batch_size):
        part = slice(start, start + config.batch_size)
        pictures = pipeline(
            labels[part],
            config.guidance,
            num_inference_steps=config.steps,
            seeds=seeds[part],
            guidance_channels=config.guidance_channels,
        ).images
        for i, picture in enumerate(pictures, start):
            picture.save(config.output / f"{i:06d}.png")
    print(f"{config.count} pictures in {config.output}, classes {labels[:16]}")
    return 0
