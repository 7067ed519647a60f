"""Pictures to latents, written once: files of some hundred pictures, each with its mirror image."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from papers_shared.checkpoints import save_state_dict
from papers_shared.devices import pick_device
from papers_shared.diffusion.class_options import LatentsConfig
from papers_shared.diffusion.class_pipeline import load_autoencoder
from papers_shared.diffusion.class_sample import share_of_work
from papers_shared.diffusion.examples import SHARDS, load_examples
from papers_shared.training.seeds import seed_from


@torch.no_grad()
def encode(vae: Any, pictures: Tensor, generators: list[torch.Generator]) -> Tensor:
    """(B, 3, H, W) in [-1, 1] to scaled latents (B, C, h, w); a posterior is drawn from."""
    found = vae.encode(pictures)
    if hasattr(found, "latents"):
        return found.latents * vae.config.scaling_factor
    posterior = found.latent_dist
    noise = [
        torch.randn(m.shape, generator=g) for m, g in zip(posterior.mean, generators, strict=True)
    ]
    drawn = posterior.mean + posterior.std * torch.stack(noise).to(posterior.mean)
    return drawn * vae.config.scaling_factor


def write_latents(config: LatentsConfig) -> Path:
    """Write what is not there yet, over all processes; see ``LatentsConfig``.

    Raises:
        ValueError: no pictures, or the folder was begun with other settings.
    """
    examples = load_examples(str(config.photos), image_size=config.image_size)
    if examples.kind != "pixels":
        raise ValueError(f"{config.photos} holds latents already, expected pictures")
    device = pick_device(config.device)
    vae = load_autoencoder(config.vae).to(device)
    side = 8 * (config.image_size // 8)
    if side != config.image_size:
        raise ValueError(f"image_size={config.image_size}: expected a multiple of 8")
    facts = {
        "count": len(examples),
        "classes": list(examples.classes),
        "vae": config.vae,
        "image_size": side,
        "side": side // 8,
        "channels": vae.config.latent_channels,
        "flip": config.flip,
        "shard": config.shard,
        "seed": config.seed,
    }
    config.output.mkdir(parents=True, exist_ok=True)
    told = config.output / SHARDS
    if told.is_file() and (begun := json.loads(told.read_text(encoding="utf-8"))) != facts:
        other = [key for key in facts if facts[key] != begun.get(key)]
        raise ValueError(f"{config.output} was begun with another {other[0]}; take another folder")
    part, parts = share_of_work()
    if part == 0 and not told.is_file():
        told.write_text(json.dumps(facts), encoding="utf-8")
    for number in range(part, -(-len(examples) // config.shard), parts):
        file = config.output / f"{number:05d}.safetensors"
        if not file.is_file():
            first = number * config.shard
            places = range(first, min(first + config.shard, len(examples)))
            _write(file, examples, places, vae, config)
    return config.output


def _write(file: Path, examples: Any, places: range, vae: Any, config: LatentsConfig) -> None:
    latents, device = [], next(vae.parameters()).device
    for start in range(places.start, places.stop, config.batch_size):
        batch = range(start, min(start + config.batch_size, places.stop))
        pictures = torch.stack([examples.load(i) for i in batch]).to(device)
        kinds = [pictures, pictures.flip(-1)] if config.flip else [pictures]
        both = []
        for mirrored, given in enumerate(kinds):
            seeds = [seed_from(config.seed, i, mirrored) for i in batch]
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            both.append(encode(vae, given, generators))
        latents.append(torch.stack(both, dim=1).half().cpu())
    labels = examples.labels[places.start : places.stop]
    partial = file.with_suffix(f".{os.getpid()}.part")
    save_state_dict({"latents": torch.cat(latents), "labels": labels}, partial)
    partial.replace(file)


def main(config: LatentsConfig) -> int:
    """Write the latents, and say where they lie."""
    print(f"latents in {write_latents(config)}")
    return 0
