"""Parts of the training scripts of ResShift-like denoisers: pairs, latents, loss."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from papers_shared.checkpoints import save_state_dict
from papers_shared.data.face_degradation import degrade_face
from papers_shared.data.photos import (
    PairTransform,
    load_photos,
    make_pairs,
    random_crop,
    random_flip,
)
from papers_shared.data.real_esrgan import TESTING, TRAINING, RealESRGANConfig
from papers_shared.diffusion.commands import PairsConfig
from papers_shared.diffusion.latents import encode, enlarge
from papers_shared.diffusion.scheduler import ResShiftScheduler
from papers_shared.training import Loader, Run

PairMaker = Callable[[Tensor, torch.Generator], dict[str, Tensor]]
DEGRADATIONS: dict[str, RealESRGANConfig] = {"training": TRAINING, "testing": TESTING}


def photos_of(sources: Sequence[str], *, least: int) -> list[Tensor]:
    """All photos of folders and data sets whose sides are at least ``least``.

    Raises:
        FileNotFoundError: a source does not exist, or none of its photos is large enough.
    """
    photos = [photo for source in sources for photo in load_photos(source, truncated="warn")]
    large = [photo for photo in photos if min(photo.shape[1:]) >= least]
    if not large:
        raise FileNotFoundError(
            f"none of {len(photos)} photos of {', '.join(sources)} is at least {least} pixels "
            "high and wide"
        )
    return large


def pair_loader(
    run: Run, config: PairsConfig, *, scale: int, batch_size: int, workers: int
) -> Loader:
    """Batches {"gt": (B, 3, S, S), "lq": (B, 3, S/scale, S/scale)} in [-1, 1].

    With ``config.pool`` the pairs come from a pool that is degraded once and kept in a file, and
    each sample is a random crop of a pair; without, every sample is degraded anew.

    Raises:
        FileNotFoundError: there are no photos.
        ValueError: the degradation of faces does not enlarge, and has no pool; the pool's
            pictures are smaller than the crops.
    """
    size = config.crop
    if config.degradation == "face" and (scale != 1 or config.pool):
        raise ValueError("degradation face is for networks of scale 1, and without a pool")
    if config.pool and config.pool_size < size:
        raise ValueError(
            f"pool_size {config.pool_size} is smaller than crop {size}; make it larger"
        )
    if not config.pool:
        photos = photos_of(config.photos, least=size)
        each: PairMaker = (
            partial(face_pair, size=size)
            if config.degradation == "face"
            else PairTransform(size, scale=scale, config=DEGRADATIONS[config.degradation])
        )
        # Photos are few and steps many: an epoch is a hundred crops of each.
        return run.loader(
            range(100 * len(photos)),
            batch_size=batch_size,
            workers=workers,
            transform=lambda index, generator: each(photos[index % len(photos)], generator),
        )
    high, low = pair_pool(config, scale=scale, folder=config.pool_folder or run.output)

    def crop(index: int, generator: torch.Generator) -> dict[str, Tensor]:
        corner = torch.randint((config.pool_size - size) // scale + 1, (2,), generator=generator)
        top, left = corner.tolist()
        small = size // scale
        lq = low[index][:, top : top + small, left : left + small]
        gt = high[index][:, scale * top :, scale * left :][:, :size, :size]
        pair = {"gt": gt.float() / 127.5 - 1, "lq": lq.float() / 127.5 - 1}
        if torch.rand((), generator=generator) < 0.5:
            pair = {name: value.flip(-1) for name, value in pair.items()}
        return pair

    return run.loader(range(len(low)), batch_size=batch_size, workers=workers, transform=crop)


def face_pair(photo: Tensor, generator: torch.Generator, *, size: int) -> dict[str, Tensor]:
    """uint8 (3, H, W) -> ``gt`` and ``lq`` (3, size, size) in [-1, 1]; half of them mirrored."""
    face = random_flip(random_crop(photo, size, generator), generator)
    gt, lq = degrade_face(face[None].float() / 255, generators=generator)
    return {"gt": gt[0] * 2 - 1, "lq": lq[0] * 2 - 1}


def pair_pool(config: PairsConfig, *, scale: int, folder: Path) -> tuple[Tensor, Tensor]:
    """The pool of a run, uint8 gt and lq; made once, then read from ``folder``.

    Raises:
        ValueError: the file in the folder was made with other settings.
    """
    path = folder / "pairs.safetensors"
    settings = {
        "photos": config.photos,
        "pool": config.pool,
        "size": config.pool_size,
        "degradation": asdict(DEGRADATIONS[config.degradation]),
        "scale": scale,
        "seed": config.pairs_seed,
    }
    wanted = json.dumps(settings, sort_keys=True)
    if path.is_file():
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("settings") != wanted:
                raise ValueError(
                    f"{path} was made with other settings; remove it or choose another --output"
                )
            return file.get_tensor("gt"), file.get_tensor("lq")
    photos = photos_of(config.photos, least=config.pool_size)
    high, low = make_pairs(
        photos,
        config.pool,
        gt_size=config.pool_size,
        scale=scale,
        config=DEGRADATIONS[config.degradation],
        seed=config.pairs_seed,
        progress=_every_percent("pairs"),
    )
    save_state_dict({"gt": high, "lq": low}, path, metadata={"settings": wanted})
    return high, low


def _every_percent(what: str) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        if done % max(1, total // 20) == 0:
            print(f"{what}: {done} of {total}", flush=True)

    return show


@torch.no_grad()
def latent_pair(vae: Any, batch: dict[str, Tensor], *, scale: int) -> tuple[Tensor, Tensor]:
    """z0 and z_y, float32 (B, C, h, w), of a batch in [-1, 1]."""
    z0 = encode(vae, batch["gt"]).float()
    return z0, encode(vae, enlarge(batch["lq"], scale)).float()


def resshift_loss(
    model: nn.Module,
    scheduler: ResShiftScheduler,
    *,
    z0: Tensor,
    z_y: Tensor,
    lq: Tensor,
    timesteps: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The denoising loss: squared error of the network's output, the same weight for all steps.

    Args:
        model: the denoiser.
        scheduler: the diffusion; says what the output is compared with.
        z0, z_y: clean and low-quality latents (B, C, h, w).
        lq: the condition: low-quality pictures (B, 3, h r, w r) in [-1, 1], or z_y.
        timesteps: (B,), uniform on 0 .. T-1 if not given.
        noise: standard normal, as z0.

    Returns:
        the loss of each sample (B,), mean over C, h, w; and the predicted z0.

    Source: dit_sr sheet 4.1, training.
    """
    if timesteps is None:
        timesteps = torch.randint(len(scheduler), z0.shape[:1], device=z0.device)
    noise = torch.randn_like(z0) if noise is None else noise
    z_t = scheduler.add_noise(z0, noise, timesteps, z_y=z_y)
    output = model(scheduler.scale_model_input(z_t, timesteps), timesteps, lq).float()
    target = scheduler.training_target(z0, z_y, noise, timesteps)
    loss = (output - target).square().mean(dim=(1, 2, 3))
    if scheduler.config.prediction_type == "epsilon_scale":  # in units of the noise
        variance = scheduler.config.kappa**2 * scheduler.training_tables.etas[timesteps.cpu()]
        loss = loss / variance.to(loss)
    return loss, scheduler.predict_original(output, timesteps, z_t, z_y)
