"""Distillation: ``accelerate launch -m tad_sr.train --config realsr --teacher TEACHER.pth``.

One update: the student makes a clean latent from pure noise around z_y; the discriminator learns
to tell its features from those of the ground truth; then the student learns from the regression to
the teacher's chain, from the score distillation and from the discriminator (tad_sr sheet 4.5).
"""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from tad_sr.cli import main as command_line

    raise SystemExit(command_line(["train", *sys.argv[1:]]))

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from papers_shared.checkpoints import file_metadata, load_file, save_state_dict
from papers_shared.diffusion import vq
from papers_shared.diffusion.evaluate import check_validation, validation_psnr
from papers_shared.diffusion.families import load_pipeline, weights_metadata
from papers_shared.diffusion.latents import condition_of
from papers_shared.diffusion.scheduler import ResShiftScheduler
from papers_shared.diffusion.swin_unet import SwinUNetConfig
from papers_shared.diffusion.train_denoiser import INTERVALS, Trained
from papers_shared.diffusion.training import latent_pair, pair_loader
from papers_shared.training import Loader, Run
from papers_shared.training.seeds import seed_from
from tad_sr import losses
from tad_sr.config import TrainConfig
from tad_sr.discriminator import discriminator_for
from tad_sr.family import FAMILY
from tad_sr.losses import LossConfig

CACHE = "targets.safetensors"


def loss_config(config: TrainConfig) -> LossConfig:
    """The losses of a run."""
    names = {f.name for f in dataclasses.fields(LossConfig)}
    return LossConfig(**{k: v for k, v in asdict(config).items() if k in names})


def train(config: TrainConfig) -> Trained:
    """Distil a teacher; see ``TrainConfig``. Resumes from ``config.output``, for more steps too.

    Raises:
        ValueError: the configuration does not fit itself, the data or an earlier run.
        FileNotFoundError: teacher, photos or autoencoder are not here; the message says how to
            get them.
    """
    options = loss_config(config)
    if config.target_cache and not options.use_fixed_time:
        raise ValueError(
            "target_cache needs use_fixed_time: the teacher's chain is computed from step T-1 once"
        )
    if FAMILY.path_of(config.teacher).is_dir():
        raise ValueError(f"{config.teacher} is a folder; give the teacher's file of weights")
    teaching = load_pipeline(
        FAMILY, config.teacher, variant=config.variant, autoencoder=config.autoencoder
    )
    network = SwinUNetConfig.of(
        {f.name: teaching.unet.config[f.name] for f in dataclasses.fields(SwinUNetConfig)}
    )
    scheduler = student_scheduler(teaching.scheduler)
    scale = scheduler.config.scale_factor
    check_validation(config.validation, scale=scale, first=config.validation_first)
    settings = {key: value for key, value in asdict(config).items() if key not in INTERVALS}
    settings.pop("cache_folder")
    settings["total_steps"] = settings.pop("steps")
    run = Run(
        config.output,
        seed=config.seed,
        config=settings,
        metadata=weights_metadata(FAMILY, network, scheduler, told_autoencoder(config)),
        mixed_precision=config.mixed_precision,
        gradient_accumulation=config.accumulate,
        ema_decay=config.ema_decay,
        log_every=config.log_every,
        save_every=config.save_every,
        tensorboard=config.tensorboard,
    )
    device = run.accelerator.device
    vae, teacher = teaching.vae.to(device), teaching.unet.to(device)
    student = FAMILY.model(**network.to_dict())
    student.load_state_dict(teacher.state_dict())
    discriminator = discriminator_for(network, c_dim=config.c_dim)
    if config.target_cache:
        loader = cached_targets(run, config, network, teacher, vae, scheduler)
    else:
        loader = pair_loader(
            run, config, scale=scale, batch_size=config.batch_size, workers=config.workers
        )
    optimizer = torch.optim.AdamW(student.parameters(), lr=config.lr, weight_decay=0.0)
    optimizer_d = torch.optim.AdamW(
        discriminator.parameters(), lr=config.lr_discriminator, weight_decay=0.0
    )
    warmup = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, config.warmup)))
    student, discriminator, optimizer, optimizer_d, warmup = run.prepare(
        student, discriminator, optimizer, optimizer_d, warmup
    )
    total = len(scheduler)
    judge = run.accelerator.unwrap_model(discriminator)

    for batch in run.steps(loader, config.steps):
        with run.accumulate():
            if config.target_cache:
                z_gt, z_y, z_tea = batch["z_gt"], batch["z_y"], batch["z_tea"]
                draws = losses.draw(options, z_y, total=total)
                draws = dataclasses.replace(draws, noise=batch["noise"])
            else:
                z_gt, z_y = latent_pair(vae, batch, scale=scale)
                draws = losses.draw(options, z_y, total=total)
            lq = condition_of(network, batch["lq"], z_y)
            z_T = losses.start(scheduler, z_y, draws.noise)
            chain = {"z_T": z_T, "z_y": z_y, "lq": lq, "t": draws.t_student}
            z_stu = losses.student_output(student, scheduler, **chain)

            fake = None
            if options.use_gan:
                at = draws.for_discriminator(z_y, lq)
                fake = losses.noised_features(teacher, scheduler, z_stu, at)
                with torch.no_grad():
                    real = losses.noised_features(teacher, scheduler, z_gt, at)
                loss_d = losses.discriminator_loss(
                    discriminator(real, draws.t_dis),
                    discriminator([f.detach() for f in fake], draws.t_dis),
                ).mean()
                run.backward(loss_d)
                optimizer_d.step()
                optimizer_d.zero_grad()
                run.log(GAN_loss_D=loss_d)

            if not config.target_cache:
                z_tea = losses.teacher_target(teacher, scheduler, **chain)
            # The student's loss is to leave no gradients in the discriminator: they would add to
            # those that wait there for an update's further micro-batches.
            judge.requires_grad_(False)
            terms = losses.student_losses(
                options,
                teacher,
                judge if options.use_gan else None,
                scheduler,
                z_stu=z_stu,
                z_tea=z_tea,
                z_gt=z_gt,
                z_y=z_y,
                lq=lq,
                fake_features=fake,
                draws=draws,
            )
            run.backward(terms["loss"].mean())
            optimizer.step()
            warmup.step()
            optimizer.zero_grad()
            judge.requires_grad_(True)
        run.log(**{name: value.mean() for name, value in terms.items()})
        due = run.accelerator.sync_gradients and run.step % config.validate_every == 0
        if config.validation and run.is_main and due:
            assert run.ema is not None
            pipeline = FAMILY.pipeline(unet=run.ema.model.eval(), vae=vae, scheduler=scheduler)
            psnr = validation_psnr(pipeline, config.validation, first=config.validation_first)
            run.record(psnr_y=psnr)

    path = run.finish()
    assert run.ema is not None
    averaged = path.with_name("model_ema.safetensors")
    return Trained(averaged, vq.freeze(run.ema.model), vae, scheduler)


def student_scheduler(teacher: ResShiftScheduler) -> ResShiftScheduler:
    """The teacher's diffusion, but short chains begin at T-1."""
    options = {k: v for k, v in teacher.config.items() if not k.startswith("_")}
    return ResShiftScheduler(**{**options, "timestep_spacing": "trailing"})


def told_autoencoder(config: TrainConfig) -> str:
    """The autoencoder's name, as the teacher's file or the options tell it."""
    told = file_metadata(FAMILY.path_of(config.teacher)).get(FAMILY.package)
    return config.autoencoder or (json.loads(told)["autoencoder"] if told else "")


# ---- targets computed once


class Targets:
    """A data set of what a step needs: lq, z_gt, z_y, noise, z_tea, each float16 (N, ...)."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors["lq"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[index].float() for name, value in self.tensors.items()}


def cached_targets(
    run: Run,
    config: TrainConfig,
    network: SwinUNetConfig,
    teacher: nn.Module,
    vae: Any,
    scheduler: ResShiftScheduler,
) -> Loader:
    """Batches with the teacher's output, which is computed once for ``target_cache`` pairs.

    Each pair has one start noise: what is learned from is a fixed set, which small runs share.
    Several processes compute a part each and all learn from the first one's file.

    Raises:
        ValueError: the cache in the folder was made with other settings.
    """
    folder = config.cache_folder or config.output
    path = folder / CACHE
    wanted = cache_settings(config)
    if path.is_file():
        if file_metadata(path).get("settings") != wanted:
            raise ValueError(
                f"{path} was made with other settings; remove it or choose another folder"
            )
        return targets_loader(run, config, path)
    scale = scheduler.config.scale_factor
    batch_size = config.batch_size
    loader = pair_loader(run, config, scale=scale, batch_size=batch_size, workers=config.workers)
    rank = run.accelerator.process_index
    generator = torch.Generator().manual_seed(seed_from(config.pairs_seed, rank))
    parts: dict[str, list[Tensor]] = {}
    count = -(-config.target_cache // batch_size)
    for i, batch in enumerate(loader.batches(0, count)):
        z_gt, z_y = latent_pair(vae, batch, scale=scale)
        noise = torch.randn(z_y.shape, generator=generator).to(z_y)
        z_T = losses.start(scheduler, z_y, noise)
        lq = condition_of(network, batch["lq"], z_y)
        z_tea = losses.teacher_target(
            teacher, scheduler, z_T=z_T, z_y=z_y, lq=lq, t=len(scheduler) - 1
        )
        made = {"lq": batch["lq"], "z_gt": z_gt, "z_y": z_y, "noise": noise, "z_tea": z_tea}
        for name, value in made.items():
            parts.setdefault(name, []).append(run.accelerator.gather(value.half()).cpu())
        if run.is_main:
            done = min((i + 1) * batch_size // config.accumulate, config.target_cache)
            print(f"teacher's outputs: {done}", flush=True)
    if run.is_main:
        tensors = {name: torch.cat(p)[: config.target_cache] for name, p in parts.items()}
        save_state_dict(tensors, path, metadata={"settings": wanted})
    run.accelerator.wait_for_everyone()
    return targets_loader(run, config, path)


def cache_settings(config: TrainConfig) -> str:
    """What a cache depends on, the teacher's weights themselves included."""
    names = ("photos", "crop", "degradation", "pool", "pool_size", "pairs_seed", "target_cache")
    settings = {name: getattr(config, name) for name in (*names, "teacher", "autoencoder")}
    if config.rescale:  # unsaid where it is off: earlier caches do not say it either
        settings["rescale"] = True
    with FAMILY.path_of(config.teacher).open("rb") as stream:
        settings["sha256"] = hashlib.file_digest(stream, "sha256").hexdigest()
    return json.dumps(settings)


def targets_loader(run: Run, config: TrainConfig, path: Path) -> Loader:
    """Batches of a cache file."""
    return run.loader(Targets(load_file(path)), batch_size=config.batch_size)


def main(config: TrainConfig) -> int:
    """Distil, and say where the student lies."""
    print(f"{train(config).path}: use it with tad-sr upscale --weights")
    return 0
