"""Parts of the training scripts of ResShift-like denoisers: pairs, latents, loss."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from papers_shared.checkpoints import save_state_dict
from papers_shared.data.face_degradation import degrade_face
from papers_shared.data.photos import (
    CROPS,
    Crop,
    PairTransform,
    PhotoFiles,
    make_pairs,
    photo_files,
    random_flip,
    stored_size,
)
from papers_shared.data.real_esrgan import TESTING, TRAINING, RealESRGANConfig
from papers_shared.diffusion.commands import PairsConfig
from papers_shared.diffusion.latents import encode, enlarge
from papers_shared.diffusion.scheduler import ResShiftScheduler
from papers_shared.training import Loader, Run

PairMaker = Callable[[Tensor, torch.Generator], dict[str, Tensor]]
DEGRADATIONS: dict[str, RealESRGANConfig] = {"training": TRAINING, "testing": TESTING}
IN_MEMORY = 2**30  # bytes of decoded photos that are kept; of more, none are
EPOCH = 1_000_000  # samples of an epoch, whose order is in memory; photos may be more


def photos_of(sources: Sequence[str], *, least: int) -> Sequence[Tensor]:
    """All photos of folders, their subfolders included, and of data sets.

    Few are decoded now and kept; of more than ``IN_MEMORY`` bytes, each is decoded whenever it is
    asked for.

    Args:
        sources: see ``photo_files``.
        least: smaller photos, by either side, are left out; told by their headers. With 1 or less,
            only as many headers are read as tell that they are more than ``IN_MEMORY``.

    Returns:
        uint8 (3, H, W) each, in the order of the sources, there by path.

    Raises:
        FileNotFoundError: a source does not exist, or none of its photos is large enough.
        ValueError: a file is no image.
    """
    found = [path for source in sources for path in photo_files(source, recursive=True)]
    large, held = [], 0
    for path in found:
        if least > 1 or held <= IN_MEMORY:
            height, width = stored_size(path)
            if min(height, width) < least:
                continue
            held += 3 * height * width
        large.append(path)
    if not large:
        raise FileNotFoundError(
            f"none of {len(found)} photos of {', '.join(sources)} is at least {least} pixels "
            "high and wide"
        )
    photos = PhotoFiles(large)
    return list(photos) if held <= IN_MEMORY else photos


class Repeated:
    """A data set: photos ``times`` over, so that an epoch is as many crops of each."""

    def __init__(self, photos: Sequence[Tensor], times: int) -> None:
        self.photos, self.times = photos, times

    def __len__(self) -> int:
        return len(self.photos) * self.times

    def __getitem__(self, index: int) -> Tensor:
        """uint8 (3, H, W)."""
        return self.photos[range(len(self))[index] % len(self.photos)]


def pair_loader(
    run: Run, config: PairsConfig, *, scale: int, batch_size: int, workers: int
) -> Loader:
    """Batches {"gt": (B, 3, S, S), "lq": (B, 3, S/scale, S/scale)} in [-1, 1].

    With ``config.pool`` the pairs come from a pool that is degraded once and kept in a file, and
    each sample is a random crop of a pair; without, every sample is degraded anew. Decoding and
    degrading is done in the workers.

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
        photos = photos_of(config.photos, least=_least(config, size))
        crop = _crop(config)
        each: PairMaker = (
            partial(face_pair, size=size, crop=crop)
            if config.degradation == "face"
            else PairTransform(
                size, scale=scale, config=DEGRADATIONS[config.degradation], crop=crop
            )
        )
        # Photos may be few and steps many: an epoch is up to a hundred crops of each.
        times = min(100, max(1, EPOCH // len(photos)))
        return run.loader(
            Repeated(photos, times), batch_size=batch_size, workers=workers, transform=each
        )
    high, low = pair_pool(config, scale=scale, folder=config.pool_folder or run.output)
    return run.loader(
        Pool(high, low), batch_size=batch_size, workers=workers, transform=PoolCrop(size, scale)
    )


def _crop(config: PairsConfig) -> Crop:
    return "rescale" if config.rescale else "random"


def _least(config: PairsConfig, size: int) -> int:
    """Shorter side that a photo must have for a picture of ``size``."""
    return 1 if config.rescale else size


class Pool:
    """A data set of pairs: ``gt`` and ``lq``, uint8 (3, H, W)."""

    def __init__(self, high: Tensor, low: Tensor) -> None:
        self.high, self.low = high, low

    def __len__(self) -> int:
        return len(self.low)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"gt": self.high[index], "lq": self.low[index]}


@dataclass(frozen=True)
class PoolCrop:
    """A pair of a pool -> its random square of gt's side ``size``, in [-1, 1]; half mirrored."""

    size: int
    scale: int

    def __call__(self, pair: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """``gt`` (3, size, size) and ``lq`` (3, size/scale, size/scale), float32."""
        size, scale = self.size, self.scale
        places = (pair["gt"].shape[-1] - size) // scale + 1
        top, left = torch.randint(places, (2,), generator=generator).tolist()
        small = size // scale
        lq = pair["lq"][:, top : top + small, left : left + small]
        gt = pair["gt"][:, scale * top :, scale * left :][:, :size, :size]
        cut = {"gt": gt.float() / 127.5 - 1, "lq": lq.float() / 127.5 - 1}
        if torch.rand((), generator=generator) < 0.5:
            cut = {name: value.flip(-1) for name, value in cut.items()}
        return cut


def face_pair(
    photo: Tensor, generator: torch.Generator, *, size: int, crop: Crop
) -> dict[str, Tensor]:
    """uint8 (3, H, W) -> ``gt`` and ``lq`` (3, size, size) in [-1, 1]; half of them mirrored."""
    face = random_flip(CROPS[crop](photo, size, generator), generator)
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
    if config.rescale:  # unsaid where it is off: earlier pools do not say it either
        settings["rescale"] = True
    wanted = json.dumps(settings, sort_keys=True)
    if path.is_file():
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("settings") != wanted:
                raise ValueError(
                    f"{path} was made with other settings; remove it or choose another --output"
                )
            return file.get_tensor("gt"), file.get_tensor("lq")
    photos = photos_of(config.photos, least=_least(config, config.pool_size))
    high, low = make_pairs(
        photos,
        config.pool,
        gt_size=config.pool_size,
        scale=scale,
        config=DEGRADATIONS[config.degradation],
        seed=config.pairs_seed,
        crop=_crop(config),
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
