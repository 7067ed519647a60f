"""ResShift's training: DiT-SR, its ablations and TAD-SR's teacher are trained by this loop."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from papers_shared.checkpoints import load_state_dict
from papers_shared.diffusion import vq
from papers_shared.diffusion.commands import DenoiserConfig
from papers_shared.diffusion.evaluate import check_validation, validation_psnr
from papers_shared.diffusion.families import Family, load_autoencoder, weights_metadata
from papers_shared.diffusion.latents import condition_of, decode, latent_factor
from papers_shared.diffusion.scheduler import ResShiftScheduler
from papers_shared.diffusion.swin_unet import UNetConfig
from papers_shared.diffusion.training import latent_pair, pair_loader, resshift_loss
from papers_shared.metrics.restoration import LPIPS
from papers_shared.training import Run

# What does not decide the result.
INTERVALS = (
    "output",
    "workers",
    "log_every",
    "save_every",
    "tensorboard",
    "validate_every",
    "validation",
    "validation_first",
    "pool_folder",
)


@dataclass(frozen=True)
class Trained:
    """What a training gives.

    Attributes:
        path: the averaged weights, safetensors.
        model: the network that holds them, in eval mode.
        vae, scheduler: what it was trained with.
    """

    path: Path
    model: Any
    vae: Any
    scheduler: ResShiftScheduler


def learning_rate_factor(config: DenoiserConfig, step: int) -> float:
    """Linear warm-up to 1, then constant or half a cosine down to lr_end / lr."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.lr_schedule == "constant":
        return 1.0
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    end = config.lr_end / config.lr
    return end + (1 - end) * (1 + math.cos(math.pi * min(1.0, done))) / 2


class PerceptualLoss:
    """LPIPS-VGG of pictures in [-1, 1], mean over a batch; 0 where it is NaN, as the authors do.

    Source: dit_sr sheet 4.2.
    """

    def __init__(self) -> None:
        self.metric = LPIPS("vgg")

    def __call__(self, image: Tensor, reference: Tensor) -> Tensor:
        """(B, 3, H, W) each -> ()."""
        distance = self.metric(image / 2 + 0.5, reference / 2 + 0.5).mean()
        # Not nan_to_num: its gradient, 0, times that of what made NaN would be NaN.
        return distance if torch.isfinite(distance) else torch.zeros_like(distance)


def _check_sizes(config: DenoiserConfig, network: UNetConfig, vae: Any, *, scale: int) -> None:
    """Before pairs are made: do autoencoder, network and crops fit each other?"""
    if (channels := vae.config.latent_channels) != network.in_channels:
        raise ValueError(
            f"the autoencoder {config.autoencoder} has {channels} latent channels, variant "
            f"{config.variant} takes {network.in_channels}; choose the autoencoder with "
            "--autoencoder FILE, or a variant that is made for this one"
        )
    multiple = math.lcm(network.alignment * latent_factor(vae), scale)
    if config.crop % multiple:
        raise ValueError(
            f"crop {config.crop} is no multiple of {multiple}, which the network and its "
            "autoencoder need"
        )


def train_denoiser(
    config: DenoiserConfig, family: Family, network: UNetConfig, scheduler: ResShiftScheduler
) -> Trained:
    """Train the denoiser ``network``; see ``DenoiserConfig``. Resumes from ``config.output``.

    A finished run goes on for more ``steps`` where the learning rate ends constant.

    Raises:
        ValueError: the configuration does not fit itself, the data or an earlier run.
        FileNotFoundError: photos or autoencoder are not here; the message says how to get them.
    """
    scale = scheduler.config.scale_factor
    check_validation(config.validation, scale=scale, first=config.validation_first)
    output = config.output or Path("runs") / config.variant
    settings = {key: value for key, value in asdict(config).items() if key not in INTERVALS}
    if config.lr_schedule == "constant":  # nothing depends on where it ends
        settings["total_steps"] = settings.pop("steps")
    run = Run(
        output,
        seed=config.seed,
        config={**settings, "network": network.to_dict()},
        metadata=weights_metadata(family, network, scheduler, config.autoencoder),
        mixed_precision=config.mixed_precision,
        gradient_accumulation=config.accumulate,
        ema_decay=config.ema_decay,
        log_every=config.log_every,
        save_every=config.save_every,
        tensorboard=config.tensorboard,
    )
    vae: Any = load_autoencoder(config.autoencoder).to(run.accelerator.device)
    _check_sizes(config, network, vae, scale=scale)
    model: nn.Module = family.model(**network.to_dict())
    if config.init is not None:
        start = family.layout.load(load_state_dict(config.init), network)
        model.load_state_dict(start.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.0)
    schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(config, step))
    loader = pair_loader(
        run, config, scale=scale, batch_size=config.batch_size, workers=config.workers
    )
    perceptual = PerceptualLoss() if config.lpips_weight else None
    model, optimizer, schedule = run.prepare(model, optimizer, schedule)

    for batch in run.steps(loader, config.steps):
        with run.accumulate():
            z0, z_y = latent_pair(vae, batch, scale=scale)
            condition = condition_of(network, batch["lq"], z_y)
            losses, predicted = resshift_loss(model, scheduler, z0=z0, z_y=z_y, lq=condition)
            loss = losses.mean()
            if perceptual is not None:
                distance = perceptual(decode(vae, predicted).clamp(-1, 1), batch["gt"])
                loss = loss + config.lpips_weight * distance
                run.log(lpips=distance)
            run.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        run.log(loss=losses.mean(), z0_mse=(predicted.detach() - z0).square().mean())
        due = run.accelerator.sync_gradients and run.step % config.validate_every == 0
        if config.validation and run.is_main and due:
            assert run.ema is not None
            pipeline = family.pipeline(unet=run.ema.model.eval(), vae=vae, scheduler=scheduler)
            psnr = validation_psnr(pipeline, config.validation, first=config.validation_first)
            run.record(psnr_y=psnr)

    path = run.finish()
    assert run.ema is not None
    averaged = path.with_name("model_ema.safetensors")
    return Trained(averaged, vq.freeze(run.ema.model), vae, scheduler)
