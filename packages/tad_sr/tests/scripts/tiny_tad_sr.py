"""A tiny teacher, photos and training options, for the tests of training and commands."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from papers_shared.checkpoints import save_state_dict
from papers_shared.cli import load_config
from papers_shared.diffusion.families import weights_metadata
from papers_shared.diffusion.scheduler import CAP, ResShiftScheduler
from papers_shared.images import write_image
from papers_shared.name_seeded import name_seeded_state_dict
from tad_sr.config import TrainConfig
from tad_sr.family import FAMILY
from tad_sr.model import Config, build

TINY = Config(
    image_size=8,
    in_channels=12,
    out_channels=12,
    model_channels=16,
    channel_mult=(1, 2),
    num_res_blocks=(1, 1),
    attention_resolutions=(8,),
    num_head_channels=8,
    swin_depth=1,
    swin_embed_dim=16,
    window_size=4,
    mlp_ratio=1,
    lq_size=8,
    norm_groups=4,
)
OPTIONS: dict[str, Any] = {
    "crop": 32,
    "rescale": False,
    "degradation": "testing",
    "steps": 3,
    "batch_size": 2,
    "lr": 1e-3,
    "lr_discriminator": 1e-3,
    "warmup": 1,
    "ema_decay": 0.9,
    "c_dim": 4,
    "validation": "",
    "workers": 0,
    "seed": 0,
    "log_every": 1,
}


def weights(config: Config = TINY, *, seed: str = "") -> dict[str, torch.Tensor]:
    """A state dict without zeros, as a new network has some; another one for each ``seed``."""
    state = {seed + name: value for name, value in build(config).state_dict().items()}
    keep = [name for name in state if name.endswith("attn_mask")]
    seeded = name_seeded_state_dict(state, keep=keep)
    return {name.removeprefix(seed): value for name, value in seeded.items()}


def write_network(path: Path, *, config: Config = TINY, seed: str = "", **diffusion: Any) -> Path:
    """A file as the training commands write it; a student's unless ``diffusion`` says otherwise."""
    options: dict[str, Any] = {
        "sqrt_eta_start_cap": CAP,
        "prediction_type": "residual",
        "timestep_spacing": "trailing",
    }
    scheduler = ResShiftScheduler(**{**options, **diffusion})
    metadata = weights_metadata(FAMILY, config, scheduler, "small")
    save_state_dict(weights(config, seed=seed), path, metadata=metadata)
    return path


def write_teacher(path: Path, **options: Any) -> Path:
    """As ``train-teacher`` writes it."""
    return write_network(path, **{"timestep_spacing": "leading", **options})


def photo(height: int, width: int, *, seed: int = 0) -> torch.Tensor:
    """A smooth random picture, (3, H, W) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    return F.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 1)


def write_photos(folder: Path, count: int = 2, *, side: int = 100) -> Path:
    """PNG files to train on."""
    folder.mkdir(parents=True)
    for i in range(count):
        write_image(photo(side, side, seed=i), folder / f"photo{i}.png")
    return folder


def write_pairs(folder: Path, count: int = 2, *, side: int = 16, scale: int = 4) -> Path:
    """``lq`` and ``gt`` of a folder to validate on."""
    for name in ("lq", "gt"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        gt = photo(scale * side, scale * side, seed=i)
        write_image(gt, folder / "gt" / f"p{i}.png")
        write_image(F.avg_pool2d(gt[None], scale)[0], folder / "lq" / f"p{i}.png")
    return folder


def options(workspace: Path, output: str, **changes: Any) -> TrainConfig:
    """Of a training on ``workspace/photos`` from ``workspace/teacher.safetensors``."""
    given = {
        **OPTIONS,
        "teacher": str(workspace / "teacher.safetensors"),
        "photos": [str(workspace / "photos")],
        "output": workspace / output,
        **changes,
    }
    return load_config(TrainConfig, None, given)


def prepare(workspace: Path, **teacher: Any) -> Path:
    """Photos and a teacher in a folder."""
    write_photos(workspace / "photos")
    write_teacher(workspace / "teacher.safetensors", **teacher)
    return workspace


def tiny(**changes: Any) -> Config:
    """``TINY`` with other values."""
    return dataclasses.replace(TINY, **changes)
