"""A recipe for every row of the paper's tables that can be computed (see papers_shared.tables)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, get_args

import torch

from papers_shared.cli import load_config
from papers_shared.diffusion.commands import EvalConfig
from papers_shared.diffusion.evaluate import measure, picture_count
from papers_shared.diffusion.latents import condition_of, encode
from papers_shared.diffusion.latents import enlarge as enlarge_bicubic
from papers_shared.diffusion.reproduce import (
    VAL_SR,
    interpolated,
    over_seeds,
    picture_scores,
    sampled,
    val_sr,
)
from papers_shared.diffusion.scheduler import CAP, ResShiftScheduler
from papers_shared.images import to_uint8
from papers_shared.inference.colour import ColourMethod, match_colour
from papers_shared.metrics.folder import WITH_REFERENCE, Scorer
from papers_shared.tables.claims import ahead
from papers_shared.tables.command import run_reproduce
from papers_shared.tables.recipe import Claim, Context, Measured, Needs, Recipe, Scale, Table
from tad_sr.claims import adversarial_gradient, gradients_at_target, identity_gap
from tad_sr.config import TrainConfig
from tad_sr.costs import (
    autoencoder,
    discriminator,
    discriminator_seesr,
    generator,
    image,
    speed,
)
from tad_sr.discriminator import discriminator_for
from tad_sr.family import load_pipeline
from tad_sr.losses import Noising, discriminator_loss, hsd_gradient, noised_features
from tad_sr.model import VARIANTS, build

TEACHER = "small_teacher"


main = partial(run_reproduce, paper="tad_sr")


# --- gradients that have to vanish --------------------------------------------------------------


def _random(seed: int) -> tuple[Any, Any, ResShiftScheduler, Noising, torch.Tensor]:
    """A random teacher and discriminator, and latents to try them on."""
    torch.manual_seed(seed)
    config = dataclasses.replace(VARIANTS["small"], lq_channels=3)
    teacher, judge = build(config).eval().requires_grad_(False), discriminator_for(config, c_dim=8)
    for parameter in teacher.parameters():  # a new network's residual blocks end in zeros
        torch.nn.init.normal_(parameter, std=0.05)
    scheduler = ResShiftScheduler(sqrt_eta_start_cap=CAP)
    shape = (2, config.in_channels, config.image_size, config.image_size)
    z_y, z, noise = torch.randn(3, *shape).unbind()
    lq = torch.rand(2, 3, config.lq_size, config.lq_size) * 2 - 1
    return teacher, judge, scheduler, Noising(z_y, lq, torch.tensor([0, 2]), noise), z


def hsd_at_target(context: Context) -> dict[str, Measured]:
    """HSD's gradient where the student is at its target."""
    teacher, _, scheduler, at, z = _random(context.seed)
    return {"gradient": Measured(gradients_at_target(teacher, scheduler, z, at)[0])}


def sds_at_target(context: Context) -> dict[str, Measured]:
    """SDS's gradient at the same place."""
    teacher, _, scheduler, at, z = _random(context.seed)
    return {"gradient": Measured(gradients_at_target(teacher, scheduler, z, at)[1])}


def hsd_identity(context: Context) -> dict[str, Measured]:
    """The two forms of HSD's gradient."""
    teacher, _, scheduler, at, z = _random(context.seed)
    other = z + 0.1 * at.noise
    return {"gap": Measured(identity_gap(teacher, scheduler, z_stu=other, z_ref=z, at=at))}


def adversarial(context: Context, *, after_step: bool) -> dict[str, Measured]:
    """The adversarial gradient of a new discriminator, or after its first update."""
    teacher, judge, scheduler, at, z = _random(context.seed)
    if after_step:
        optimizer = torch.optim.AdamW(judge.parameters(), lr=5e-5, weight_decay=0.0)
        logits = [
            judge(noised_features(teacher, scheduler, x, at), at.timesteps) for x in (z, at.z_y)
        ]
        discriminator_loss(*logits).mean().backward()
        optimizer.step()
    gradient = adversarial_gradient(teacher, judge, scheduler, z, at)
    return {"gradient": Measured(gradient.abs().max().item())}


# --- pictures -----------------------------------------------------------------------------------


def enlarged(context: Context, *, pillow: bool) -> dict[str, Measured]:
    """Val_SR enlarged bicubically, by torch or by Pillow."""
    return _val_sr_scores(context, _pillow if pillow else interpolated("bicubic"))


def _pillow(lq: torch.Tensor, i: int) -> torch.Tensor:
    import numpy as np
    from PIL import Image

    picture = Image.fromarray(to_uint8(lq).permute(1, 2, 0).numpy())
    large = picture.resize((4 * picture.width, 4 * picture.height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(large)).permute(2, 0, 1).float() / 255


def small(context: Context, *, weights: str) -> dict[str, Measured]:
    """A small network trained here: the teacher in all its steps, or the student in one."""
    return _val_sr_scores(context, sampled(load_pipeline(weights), None, seed=context.seed))


def released(
    context: Context, *, weights: str, steps: int | None, metrics: Sequence[str]
) -> dict[str, Measured]:
    """Released weights on the recipe's photos, by the command ``eval``.

    Pairs give the metrics under their names, photos without references under those of set and
    metric. CLIPIQA and MUSIQ of pairs are left out where pyiqa is not installed.
    """
    pipeline = load_pipeline(
        str(context.assets[weights].path),
        variant="realsr",
        autoencoder=str(context.assets[AUTOENCODER].path),
    ).to(context.device)
    wanted = [name for name in metrics if name in WITH_REFERENCE or find_spec("pyiqa")]
    sets = {name: count for name, count in PHOTOS.items() if name in context.assets}
    row: dict[str, Measured] = {}
    for name, count in sets.items():
        config = EvalConfig(
            data=str(context.assets[name].path), metrics=wanted, steps=steps, seed=context.seed
        )
        if (found := picture_count(config)) != count:
            raise Needs(f"{config.data} holds {found} pictures, {name} has {count}")
        scores = measure(pipeline, config, progress=context.progress)
        prefix = "" if name in (IMAGENET, VAL_SR) else f"{name.removesuffix('_test')}_"
        row |= {f"{prefix}{k}": Measured(v, n=count) for k, v in scores.means.items()}
    return row


def _val_sr_scores(context: Context, enlarge: Any) -> dict[str, Measured]:
    scorer, pairs = Scorer(WITH_REFERENCE), val_sr(context)
    rows = []
    for i in range(len(pairs)):
        pair = pairs[i]
        rows.append(scorer(to_uint8(enlarge(pair.lq, i)), to_uint8(pair.gt)))
        context.progress(i + 1, len(pairs), "pictures")
    return {
        name: Measured(sum(row[name] for row in rows) / len(rows), n=len(rows)) for name in rows[0]
    }


def colour(context: Context, *, method: ColourMethod) -> dict[str, Measured]:
    """The student's pictures with their colours matched to the low-quality ones."""
    one_step = sampled(load_pipeline(), None, seed=context.seed)

    def enlarge(lq: torch.Tensor, i: int) -> torch.Tensor:
        return match_colour(one_step(lq, i), lq, method).clamp(0, 1)

    scores, _ = picture_scores(val_sr(context), enlarge, progress=context.progress)
    return {name: Measured(scores[name], n=32) for name in ("psnr", "lpips")}


def step_weighting(context: Context, *, high: bool) -> dict[str, Measured]:
    """Strength of HSD's gradient for a difference of high or low frequencies."""
    teaching = load_pipeline(TEACHER)
    pairs, generator = val_sr(context), torch.Generator().manual_seed(context.seed)
    gt = torch.stack([pairs[i].gt for i in range(8)]) * 2 - 1
    lq = torch.stack([pairs[i].lq for i in range(8)]) * 2 - 1
    with torch.no_grad():
        z, z_y = encode(teaching.vae, gt), encode(teaching.vae, enlarge_bicubic(lq, 4))
        condition = condition_of(teaching.unet.config, lq, z_y)
    spectrum = torch.fft.rfft2(torch.randn(z.shape, generator=generator))
    rows = torch.fft.fftfreq(z.shape[-2])[:, None].abs()
    columns = torch.fft.rfftfreq(z.shape[-1])[None]
    keep = (torch.maximum(rows, columns.expand(len(rows), -1)) >= 0.25) == high
    difference = torch.fft.irfft2(spectrum * keep, s=z.shape[-2:])
    difference = 0.1 * difference / difference.std()
    row = {}
    for t in (0, 1, 2, 6, 13):
        noise = torch.randn(z.shape, generator=generator)
        at = Noising(z_y, condition, torch.full((8,), t), noise)
        gradient = hsd_gradient(
            teaching.unet,
            teaching.scheduler,
            z_stu=z + difference,
            z_ref=z,
            at=at,
            double_scale=False,
        )
        row[f"t{t}"] = Measured((gradient.norm() / difference.norm()).item(), n=8)
    return row


# --- small-scale distillations ------------------------------------------------------------------

SMALL: Mapping[str, Any] = {
    "teacher": TEACHER,
    "photos": ["bsds500_train"],
    "degradation": "testing",
    "crop": 64,
    "pool": 150,
    "pool_size": 160,
    "target_cache": 256,
    "steps": 200,
    "batch_size": 8,
    "lr": 2e-4,
    "lr_discriminator": 2e-4,
    "warmup": 20,
    "ema_decay": 0.99,
    "seeds": 3,
}
STUDENTS: Mapping[str, Mapping[str, Any]] = {
    "regression": {"distill_type": "none", "use_gan": False},
    "sds": {"distill_type": "SDS", "use_gan": False},
    "hsd_only": {"regression_weight": 0.0, "use_gan": False},
    "hsd": {"use_gan": False},
    "hsd_gan": {},
}


def student(context: Context) -> dict[str, Measured]:
    """Distil once a seed; scores of one step on Val_SR."""
    from tad_sr.pipeline import TADSRPipeline
    from tad_sr.train import train

    settings = dict(context.settings)
    seeds = settings.pop("seeds")
    fixed = {
        "validation": "",
        "workers": 0,
        "rescale": False,
        "pool_folder": context.workdir,
        "cache_folder": context.workdir,
        "save_every": settings["steps"],
    }
    pairs, rows = val_sr(context), []
    _, teachers = picture_scores(pairs, sampled(load_pipeline(TEACHER), None, seed=0), first=16)
    for seed in range(context.seed, context.seed + seeds):
        run = {"seed": seed, "output": context.workdir / f"seed{seed}"}
        done = train(load_config(TrainConfig, None, {**settings, **fixed, **run}))
        pipeline = TADSRPipeline(unet=done.model, vae=done.vae, scheduler=done.scheduler)
        scores, _ = picture_scores(
            pairs, sampled(pipeline, None, seed=seed), first=16, reference=teachers
        )
        rows.append(scores)
        context.progress(seed - context.seed + 1, seeds, "distillations")
    return over_seeds(rows)


def teacher(context: Context) -> dict[str, Measured]:
    """The students' teacher in all its steps, on the same pictures; seeds of its noise."""
    pairs, pipeline, rows, first = val_sr(context), load_pipeline(TEACHER), [], None
    for seed in range(context.seed, context.seed + SMALL["seeds"]):
        scores, pictures = picture_scores(
            pairs, sampled(pipeline, None, seed=seed), first=16, reference=first
        )
        first = first or pictures
        rows.append({**scores, "gradient_energy": 1.0} if seed == context.seed else scores)
        context.progress(seed - context.seed + 1, SMALL["seeds"], "seeds")
    return over_seeds(rows)


# The photos of the paper's tables, and how many they are.
IMAGENET, REALSR, REALSET65 = "imagenet_test", "realsr_test", "realset65"
PHOTOS = {IMAGENET: 3000, REALSR: 100, REALSET65: 65, VAL_SR: 32}
AUTOENCODER = "vq_f4_autoencoder"
WITHOUT = ("clipiqa", "musiq")
ALL = (*WITH_REFERENCE, *WITHOUT)
RELEASED: Mapping[str, tuple[str, int | None]] = {
    "resshift_15": ("resshift_realsr_s15_v1", 15),
    "sinsr_1": ("sinsr_realsr_v1", None),
    "tad_sr_1": ("tad_sr_realsr", None),
}


def _released(row: str, *sets: str, metrics: Sequence[str], scale: Scale = "exact") -> Recipe:
    """A row of released weights; 18 s a picture and 1.6 s a further step on a CPU core."""
    weights, steps = RELEASED[row]
    learned = ("lpips_alexnet_features",) if "lpips" in metrics else ()
    return Recipe(
        partial(released, weights=weights, steps=steps, metrics=metrics),
        scale=scale,
        seconds=sum(PHOTOS[name] for name in sets) * (18 + 1.6 * ((steps or 1) - 1)),
        assets=(weights, AUTOENCODER, *sets, *learned),
        requires=() if learned else ("pyiqa",),
    )


_EXACT = partial(Recipe, scale="exact", seconds=4)
_ON_VAL_SR = partial(Recipe, assets=(VAL_SR, "lpips_alexnet_features"))
_DISTILLED = partial(
    Recipe,
    student,
    scale="small",
    seconds=900,
    assets=(VAL_SR, "bsds500_train", "lpips_alexnet_features"),
)

TABLES: dict[str, Table] = {
    "complexity": Table(
        {
            "generator": _EXACT(partial(generator, variant="realsr")),
            "teacher_15": _EXACT(partial(generator, variant="realsr", steps=15)),
            "generator_encoder": _EXACT(partial(generator, variant="realsr", features=True)),
            "generator_face": _EXACT(partial(generator, variant="faceir")),
            "vq_f4": _EXACT(partial(autoencoder, part="whole")),
            "vq_f4_encoder": _EXACT(partial(autoencoder, part="encoder")),
            "vq_f4_decoder": _EXACT(partial(autoencoder, part="decoder")),
            "image_one_step": _EXACT(partial(image, steps=1)),
            "image_15_steps": _EXACT(partial(image, steps=15)),
            "discriminator": _EXACT(discriminator),
            "discriminator_seesr": _EXACT(discriminator_seesr),
        }
    ),
    "deterministic": Table(
        {
            "hsd_at_target": _EXACT(hsd_at_target),
            "sds_at_target": _EXACT(sds_at_target),
            "hsd_identity": _EXACT(hsd_identity),
            "adversarial_at_start": _EXACT(partial(adversarial, after_step=False)),
            "adversarial_after_step": _EXACT(partial(adversarial, after_step=True)),
        },
        claims=[
            Claim(
                "score distillation against the teacher's output has no bias, against noise it has",
                lambda r: (
                    r["hsd_at_target"]["gradient"].value == 0
                    and r["sds_at_target"]["gradient"].value > 0
                ),
            ),
            Claim(
                "no adversarial gradient reaches the student until the discriminator has moved",
                lambda r: (
                    r["adversarial_at_start"]["gradient"].value == 0
                    and r["adversarial_after_step"]["gradient"].value > 0
                ),
            ),
        ],
    ),
    "table2": Table(
        {
            "resshift_15": _released("resshift_15", IMAGENET, metrics=ALL),
            "sinsr_1": _released("sinsr_1", IMAGENET, metrics=ALL),
            "tad_sr_1": _released("tad_sr_1", IMAGENET, metrics=("lpips", *WITHOUT)),
        }
    ),
    "table3": Table(
        {
            "resshift_15": _released("resshift_15", REALSR, REALSET65, metrics=WITHOUT),
            "sinsr_1": _released("sinsr_1", REALSR, REALSET65, metrics=WITHOUT),
            "tad_sr_1": _released("tad_sr_1", REALSR, metrics=WITHOUT),
        }
    ),
    "table2_val_sr": Table(
        {
            **{
                row: _released(row, VAL_SR, metrics=ALL, scale="small")
                for row in ("resshift_15", "tad_sr_1")
            },
            "bicubic": _ON_VAL_SR(partial(enlarged, pillow=False), seconds=8, scale="exact"),
            "bicubic_pillow": _ON_VAL_SR(partial(enlarged, pillow=True), seconds=8, scale="exact"),
            "teacher_small": _ON_VAL_SR(
                partial(small, weights=TEACHER), seconds=150, scale="small"
            ),
            "student_small": _ON_VAL_SR(partial(small, weights="small"), seconds=20, scale="small"),
        },
        claims=[
            Claim(
                "one step of the student is within 0.3 dB of the teacher's fifteen",
                lambda r: r["student_small"]["psnr"].value > r["teacher_small"]["psnr"].value - 0.3,
            ),
            Claim(
                "the student looks better than bicubic (LPIPS)",
                lambda r: r["student_small"]["lpips"].value < r["bicubic"]["lpips"].value,
            ),
        ],
    ),
    "ablation_small": Table(
        {
            "teacher": _ON_VAL_SR(teacher, seconds=240, scale="small"),
            **{
                name: _DISTILLED(settings={**SMALL, **changes})
                for name, changes in STUDENTS.items()
            },
        },
        claims=[
            Claim(
                "one step of the student is within 0.3 dB of the teacher's fifteen",
                lambda r: r["hsd_gan"]["psnr"].value > r["teacher"]["psnr"].value - 0.3,
            ),
            Claim(
                "HSD is sharper than regression alone",
                ahead("hsd", "regression", ["gradient_energy"]),
            ),
            Claim(
                "the adversarial loss makes it sharper still",
                ahead("hsd_gan", "hsd", ["gradient_energy"]),
            ),
            Claim(
                "HSD looks better than SDS (LPIPS)",
                ahead("hsd", "sds", ["lpips"], smaller=True),
            ),
            Claim(
                "all losses together look better than regression alone (LPIPS)",
                ahead("hsd_gan", "regression", ["lpips"], smaller=True),
            ),
        ],
    ),
    "step_weighting": Table(
        {
            name: Recipe(
                partial(step_weighting, high=high), seconds=30, scale="small", assets=(VAL_SR,)
            )
            for name, high in (("high", True), ("low", False))
        },
        claims=[
            Claim(
                "the pull falls with the noise: the first steps decide",
                lambda r: (
                    r["high"]["t0"].value
                    > r["high"]["t1"].value
                    > r["high"]["t2"].value
                    > r["high"]["t6"].value
                    > r["high"]["t13"].value
                ),
            ),
            Claim(
                "beyond the first step it pulls more at high frequencies than at low ones",
                lambda r: r["high"]["t2"].value > r["low"]["t2"].value,
            ),
        ],
    ),
    "colour": Table(
        {
            method: _ON_VAL_SR(partial(colour, method=method), seconds=25, scale="small")
            for method in get_args(ColourMethod)
        }
    ),
    "speed": Table(
        {
            f"{what}_{steps}": Recipe(
                partial(speed, whole=what == "image", steps=steps), seconds=180, scale="small"
            )
            for what in ("network", "image")
            for steps in (15, 1)
        }
    ),
}
