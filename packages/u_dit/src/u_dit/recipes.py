"""What the small-scale recipes compute: trainings on CIFAR-10's pictures at 16x16 pixels."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from papers_shared.cli import load_config
from papers_shared.data.cifar10 import load_cifar10
from papers_shared.diffusion.class_eval import noise_error
from papers_shared.diffusion.examples import load_examples, smaller, to_pictures
from papers_shared.metrics.adm import adm_scores, statistics_of
from papers_shared.metrics.cifar_features import cifar_features, load_cifar_network
from papers_shared.tables.recipe import Context, Measured, Needs
from u_dit.config import TrainConfig
from u_dit.counting import paper_macs
from u_dit.dit import DiTConfig
from u_dit.family import FAMILY
from u_dit.model import VARIANTS, Config
from u_dit.train import train

SIDE = 16
_DATA: Mapping[str, Any] = {"input_size": SIDE, "in_channels": 3, "num_classes": 10}


def toy(variant: str, **changes: Any) -> Config:
    """A network of the paper's toy experiment at width 16, one pair of blocks a stage."""
    values = {"hidden_size": 16, "num_heads": 2, "depth": (1, 1, 1, 1, 1), **_DATA, **changes}
    return replace(VARIANTS[variant], label_dropout="joint", **values)


# Token downsampling's cost, as a DiT: 64 tokens of 2x2 pixels.
DIT = DiTConfig(patch_size=2, hidden_size=64, depth=7, num_heads=4, **_DATA)
NETWORKS: Mapping[str, Config | DiTConfig] = {
    "dit": DIT,
    "dit_unet_slim": toy("DiT-UNet", hidden_size=12),
    "dit_unet": toy("DiT-UNet"),
    "dit_unet_kv": toy("DiT-UNet-kv"),
    "pixel_shuffle": toy("U-DiT-T-pixelshuffle"),
    "u_dit_t": toy("U-DiT-T"),
    "cosine": toy("U-DiT-T-cosine"),
    "rope": toy("U-DiT-T-rope"),
    "dwconv_ffn": toy("U-DiT-T-dwconv-ffn"),
    "reparam": toy("U-DiT-T-all"),
}
SMALL: Mapping[str, Any] = {
    "image_size": SIDE,
    "steps": 300,
    "batch_size": 16,
    "lr": 1e-3,
    "ema_decay": 0.98,
    "mixed_precision": "bf16",
    "seeds": 3,
    "held_out": 1000,
    "samples": 256,
    "sampling_steps": 8,
}


@lru_cache(maxsize=4)
def _reference(side: int, device: str) -> Any:
    """Statistics of CIFAR-10's test pictures at a side."""
    pictures = smaller(load_cifar10("test").images, side)
    return statistics_of(*cifar_features(load_cifar_network(device), pictures))


def cifar_scores(pictures: Tensor, *, device: str = "cpu") -> dict[str, float]:
    """``frechet``, ``precision``, ``recall``, ``score`` in the features of a CIFAR classifier.

    Args:
        pictures: uint8 (N, 3, H, H).
        device: where features are computed.
    """
    made = statistics_of(*cifar_features(load_cifar_network(device), pictures))
    scores = adm_scores(made, _reference(pictures.shape[-1], device))
    names = {"fid": "frechet", "inception_score": "score"}
    return {names.get(name, name): value for name, value in scores.items()}


def draw(
    network: Any, *, count: int, steps: int, seed: int, guidance: float = 1.0, device: str = "cpu"
) -> Tensor:
    """Pictures of all classes in turns by DPM-Solver++, uint8 (count, 3, H, H)."""
    from u_dit.pipeline import UDiTPipeline, make_scheduler

    made = UDiTPipeline(FAMILY.as_model(network), None, make_scheduler("dpm")).to(device)
    made.set_progress_bar_config(disable=True)
    classes = network.options.num_classes
    found = []
    for start in range(0, count, 100):
        places = range(start, min(start + 100, count))
        pictures = made(
            [i % classes for i in places],
            guidance,
            num_inference_steps=steps,
            seeds=[seed + i for i in places],
            output_type="pt",
        ).images
        found.append(to_pictures(2 * pictures - 1).permute(0, 3, 1, 2))
    return torch.cat(found).cpu()


def small_training(context: Context) -> dict[str, Measured]:
    """Train a network once a seed; error of the noise on held-out pictures, and distances."""
    settings = dict(context.settings)
    seeds, network = settings.pop("seeds"), settings.pop("network")
    held_out, samples = settings.pop("held_out"), settings.pop("samples")
    sampling_steps = settings.pop("sampling_steps")
    config = build_config(network)
    fixed = {
        "data": "cifar10",
        "variant": "toy",
        "save_every": settings["steps"],
        "log_every": settings["steps"],
    }
    test = load_examples("cifar10", split="test", image_size=settings["image_size"])
    load_examples("cifar10", image_size=settings["image_size"])  # read before times are taken
    rows: list[dict[str, float]] = []
    for seed in range(context.seed, context.seed + seeds):
        run = {"seed": seed, "output": context.workdir / f"seed{seed}"}
        start = time.process_time()
        options = load_config(TrainConfig, None, {**settings, **fixed, **run})
        model: Any = FAMILY.merge(train(options, network=config).model.to(context.device))
        took = time.process_time() - start
        errors = noise_error(model, test, first=held_out, device=context.device)
        pictures = draw(
            model, count=samples, steps=sampling_steps, seed=1000 * seed, device=context.device
        )
        scores = cifar_scores(pictures, device=context.device)
        rows.append(
            {
                "noise_mse": 1e3 * errors.mean().item(),
                "cifar_frechet": scores["frechet"],
                "step_ms": 1e3 * took / settings["steps"],
            }
        )
        context.progress(len(rows), seeds, "trainings")
    values = {name: torch.tensor([r[name] for r in rows], dtype=torch.float64) for name in rows[0]}
    found = {
        name: Measured(v.mean().item(), std=v.std().item() if len(v) > 1 else None, n=len(v))
        for name, v in values.items()
    }
    return {"macs": Measured(paper_macs(config, settings["image_size"]) / 1e6), **found}


def build_config(values: Mapping[str, Any]) -> Config | DiTConfig:
    """A configuration from a plain mapping, of a U-DiT or (with ``patch_size``) a DiT."""
    return DiTConfig.of(values) if "patch_size" in values else Config.of(values)


def shipped(context: Context) -> dict[str, Measured]:
    """The network that ships: held-out error, and distances with and without guidance."""
    from u_dit.official import load_checkpoint

    if not FAMILY.shipped_file(FAMILY.shipped).is_file():
        raise Needs(
            f"weights/{FAMILY.shipped}.safetensors is not in this checkout: train it with `u-dit "
            "train --config cifar10_mini` and export model_ema.safetensors of its run there"
        )
    settings = context.settings
    model, _ = load_checkpoint()
    merged: Any = FAMILY.merge(model.to(context.device))
    test = load_examples("cifar10", split="test", image_size=merged.options.input_size)
    found = noise_error(merged, test, first=settings["held_out"], device=context.device)
    row = {"noise_mse": Measured(1e3 * found.mean().item(), n=len(found))}
    for name, guidance in (("", 1.0), ("_guided", settings["guidance"])):
        pictures = draw(
            merged,
            count=settings["samples"],
            steps=settings["sampling_steps"],
            seed=context.seed,
            guidance=guidance,
            device=context.device,
        )
        scores = cifar_scores(pictures, device=context.device)
        row[f"cifar_frechet{name}"] = Measured(scores["frechet"], n=len(pictures))
        row[f"cifar_precision{name}"] = Measured(scores["precision"], n=len(pictures))
        row[f"cifar_recall{name}"] = Measured(scores["recall"], n=len(pictures))
    return row


def pictures_themselves(context: Context) -> dict[str, Measured]:
    """The distance of as many training pictures from the test pictures: what is to be reached."""
    count = context.settings["samples"]
    pictures = smaller(load_cifar10("train").images[:count], SIDE)
    scores = cifar_scores(pictures, device=context.device)
    return {
        "cifar_frechet": Measured(scores["frechet"], n=count),
        "cifar_precision": Measured(scores["precision"], n=count),
        "cifar_recall": Measured(scores["recall"], n=count),
    }
