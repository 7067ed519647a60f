"""A recipe for every row of the paper's tables that can be computed (see papers_shared.tables)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from dit_sr.config import TrainConfig
from dit_sr.family import load_pipeline
from dit_sr.model import VARIANTS, Conditioning, Config, DiTBlock, build
from papers_shared.cli import load_config
from papers_shared.complexity import Operations, count_macs, count_parameters
from papers_shared.diffusion import vq
from papers_shared.diffusion.parity import as_recorded
from papers_shared.diffusion.reproduce import (
    VAL_SR,
    autoencoder_counts,
    denoiser_inputs,
    denoising_mse,
    interpolated,
    over_seeds,
    picture_scores,
    sampled,
    val_sr,
)
from papers_shared.diffusion.swin_unet import SwinUNetConfig, UNetModelSwin
from papers_shared.diffusion.unet_parts import timestep_embedding
from papers_shared.images import to_uint8
from papers_shared.metrics.restoration import LPIPS, PSNR, SSIM
from papers_shared.tables.claims import ahead
from papers_shared.tables.command import run_reproduce
from papers_shared.tables.recipe import Claim, Context, Measured, Recipe, Table

main = partial(run_reproduce, paper="dit_sr")


# --- counts -------------------------------------------------------------------------------------

RESSHIFT = SwinUNetConfig()
NETWORKS: Mapping[str, Config | SwinUNetConfig] = {
    "dit_sr": VARIANTS["realsr"],
    "dit_sr_lite": VARIANTS["realsr_lite"],
    "dit_sr_face": VARIANTS["faceir"],
    "resshift": RESSHIFT,
    "resshift_face": replace(RESSHIFT, in_channels=8, out_channels=8, lq_size=512),
}


def _operations(config: Config | SwinUNetConfig, rule: Any) -> Operations:
    with torch.device("meta"):
        model = build(config) if isinstance(config, Config) else UNetModelSwin(config)
    as_recorded(model)
    return count_macs(model, denoiser_inputs(config), rule=rule)


def complexity(context: Context, *, network: str) -> dict[str, Measured]:
    """Parameters and operations of one denoising step; nothing is computed."""
    config = NETWORKS[network]
    return {
        "params": Measured(_parameters(config) / 1e6),
        "flops": Measured(_operations(config, "calflops").total / 1e9),
        "macs": Measured(_operations(config, "conv_linear").total / 1e9),
        "true_flops": Measured(_operations(config, "flop_counter").total / 1e9),
    }


def _parameters(config: Config | SwinUNetConfig) -> int:
    with torch.device("meta"):
        return count_parameters(
            build(config) if isinstance(config, Config) else UNetModelSwin(config)
        )


def autoencoder(context: Context, *, face: bool, part: str) -> dict[str, Measured]:
    """Parameters, and FLOPs where they are reported, of an autoencoder or one of its ways."""
    counts = autoencoder_counts(vq.F8_FACE if face else vq.F4, side=512 if face else 256)[part]
    row = {"params": Measured(counts["params"])}
    if "macs" in counts:
        row["true_flops"] = Measured(2 * counts["macs"])
    if face and part != "whole":
        row.pop("params")
    return row


def with_autoencoder(context: Context) -> dict[str, Measured]:
    """ResShift's denoiser and its autoencoder together."""
    whole = autoencoder_counts(vq.F4, side=256)["whole"]["params"]
    return {"params": Measured(_parameters(RESSHIFT) / 1e6 + whole)}


def by_kind(context: Context) -> dict[str, Measured]:
    """DiT-SR's operations by kind, the counting rule's."""
    counts = _operations(VARIANTS["realsr"], "calflops").by_kind
    return {name: Measured(value / 1e9) for name, value in counts.items()}


def conditioning(context: Context, *, kind: Conditioning) -> dict[str, Measured]:
    """Parameters of the full and the Lite network with another conditioning."""
    row = {}
    for column, variant in (("full", "realsr"), ("lite", "realsr_lite")):
        config = VARIANTS[variant]
        bare = _parameters(replace(config, conditioning="none"))
        count = _parameters(replace(config, conditioning=kind))
        row[f"params_{column}"] = Measured(count / 1e6)
        row[f"conditioning_{column}"] = Measured((count - bare) / 1e6)
    return row


# --- pictures -----------------------------------------------------------------------------------


def interpolation(context: Context, *, mode: str) -> dict[str, Measured]:
    """Val_SR enlarged by torch's interpolation."""
    return _val_sr_scores(context, interpolated(mode))


def small(context: Context) -> dict[str, Measured]:
    """The small network trained here, all 15 steps, on Val_SR."""
    return _val_sr_scores(context, sampled(load_pipeline(), None, seed=context.seed))


def _val_sr_scores(context: Context, enlarge: Any) -> dict[str, Measured]:
    metrics: dict[str, Any] = {
        "psnr_y": PSNR(channels="y"),
        "ssim_y": SSIM(channels="y"),
        "psnr_rgb": PSNR(),
        "lpips": LPIPS(),
    }
    pairs = val_sr(context)
    values: dict[str, list[float]] = {name: [] for name in metrics}
    for i in range(len(pairs)):
        image, truth = to_uint8(enlarge(pairs[i].lq, i))[None], to_uint8(pairs[i].gt)[None]
        for name, metric in metrics.items():
            values[name].append(float(metric(image, truth)))
        context.progress(i + 1, len(pairs), "pictures")
    return {name: Measured(sum(v) / len(v), n=len(v)) for name, v in values.items()}


def few_steps(context: Context, *, steps: int) -> dict[str, Measured]:
    """The small network with all or fewer steps."""
    scores, _ = picture_scores(
        val_sr(context),
        sampled(load_pipeline(), steps, seed=context.seed),
        progress=context.progress,
    )
    return {name: Measured(value, n=32) for name, value in scores.items()}


def frequency_gains(context: Context, *, high: bool) -> dict[str, Measured]:
    """AdaFM's gains of the small network below or from half of Nyquist on, relative to all."""
    network = load_pipeline().unet
    p = network.config.fft_patch_size
    rows, columns = torch.fft.fftfreq(p)[:, None].abs(), torch.fft.rfftfreq(p)[None]
    band = torch.maximum(rows, columns.expand(p, -1)) >= 0.25
    band = band if high else ~band
    steps = torch.tensor([0, 7, 14])
    with torch.no_grad():
        emb = network.time_embed(timestep_embedding(steps, network.model_channels))
        gains = [
            linear(emb).abs().unflatten(1, (p, p // 2 + 1))
            for module in network.modules()
            if isinstance(module, DiTBlock) and module.patch_size == p
            for linear in (module.adaLN_scale_msa, module.adaLN_scale_mlp)
        ]
    mean = torch.stack(gains).mean(0)
    ratio = mean[:, band].mean(1) / mean.flatten(1).mean(1)
    return {f"t{t}": Measured(r) for t, r in zip(steps.tolist(), ratio.tolist(), strict=True)}


# --- small-scale trainings ----------------------------------------------------------------------

TINY = Config(
    image_size=8,
    in_channels=12,
    out_channels=12,
    model_channels=32,
    channel_mult=(1, 2),
    attention_resolutions=(8, 4),
    num_head_channels=16,
    swin_depth=2,
    swin_embed_dim=32,
    window_size=4,
    mlp_ratio=2,
    dropout=0.0,
    lq_size=8,
    lq_channels=12,
    fft_patch_size=4,
    norm_groups=8,
)
SMALL: Mapping[str, Any] = {
    "photos": ["bsds500_train"],
    "degradation": "testing",
    "crop": 32,
    "pool": 600,
    "pool_size": 96,
    "steps": 400,
    "ema_decay": 0.98,
    "batch_size": 16,
    "lr": 1e-3,
    "warmup": 50,
    "lr_schedule": "cosine",
    "prediction": "residual",
    "seeds": 3,
}


def isotropic(like: Config) -> Config:
    """The same blocks at one resolution, as deep as gives the FLOPs of ``like``."""
    flat = replace(like, channel_mult=(1,), attention_resolutions=like.attention_resolutions[:1])
    wanted = _operations(like, "calflops").total
    depths = {d: replace(flat, swin_depth=d) for d in range(1, 17)}
    gaps = {d: abs(_operations(c, "calflops").total - wanted) for d, c in depths.items()}
    return depths[min(gaps, key=gaps.__getitem__)]


def small_training(context: Context, *, network: Config) -> dict[str, Measured]:
    """Train a tiny network once a seed; error of the clean latent and PSNR on Val_SR."""
    from dit_sr.pipeline import DiTSRPipeline
    from dit_sr.train import train

    settings = dict(context.settings)
    seeds = settings.pop("seeds")
    fixed = {
        "variant": "small",
        "validation": "",
        "workers": 0,
        "rescale": False,
        "pool_folder": context.workdir,
        "save_every": settings["steps"],
        "lr_end": settings["lr"] / 50,
    }
    pairs, rows = val_sr(context), []
    for seed in range(context.seed, context.seed + seeds):
        run = {"seed": seed, "output": context.workdir / f"seed{seed}"}
        done = train(load_config(TrainConfig, None, {**settings, **fixed, **run}), network=network)
        pipeline = DiTSRPipeline(unet=done.model, vae=done.vae, scheduler=done.scheduler)
        scores, _ = picture_scores(pairs, sampled(pipeline, None, seed=seed), first=4)
        mse = denoising_mse(done.model, done.vae, done.scheduler, pairs, first=8, seed=0)
        rows.append({"val_mse": mse, "psnr": scores["psnr"]})
        context.progress(seed - context.seed + 1, seeds, "trainings")
    return over_seeds(rows)


def ablate_conditioning(context: Context, *, kind: Conditioning) -> dict[str, Measured]:
    """One conditioning of the tiny network."""
    network = replace(TINY, conditioning=kind)
    bare = _parameters(replace(TINY, conditioning="none"))
    row = small_training(context, network=network)
    return {**row, "conditioning_params": Measured(_parameters(network) - bare)}


def ablate_shape(context: Context, *, flat: bool) -> dict[str, Measured]:
    """The tiny network, or its blocks at one resolution at equal FLOPs."""
    network = isotropic(TINY) if flat else TINY
    return {
        **small_training(context, network=network),
        "params": Measured(_parameters(network) / 1e6),
        "flops": Measured(_operations(network, "calflops").total / 1e9),
    }


_EXACT = partial(Recipe, scale="exact")
_ON_VAL_SR = partial(Recipe, assets=(VAL_SR, "lpips_alexnet_features"))
_TRAINED = partial(
    Recipe,
    scale="small",
    seconds=900,
    assets=(VAL_SR, "bsds500_train", "lpips_alexnet_features"),
    settings=SMALL,
)
KINDS: tuple[Conditioning, ...] = ("adafm", "adaln", "adaln_zero", "none")

TABLES: dict[str, Table] = {
    "complexity": Table(
        {
            **{name: _EXACT(partial(complexity, network=name), seconds=4) for name in NETWORKS},
            **{
                f"vq_{name}{suffix}": _EXACT(partial(autoencoder, face=face, part=part), seconds=2)
                for name, face in (("f4", False), ("f8_face", True))
                for suffix, part in (
                    ("", "whole"),
                    ("_encoder", "encoder"),
                    ("_decoder", "decoder"),
                )
            },
            "resshift_with_vq_f4": _EXACT(with_autoencoder, seconds=2),
        },
        claims=[
            Claim(
                "DiT-SR has about half of ResShift's parameters and fewer operations",
                lambda r: (
                    r["dit_sr"]["params"].value < 0.52 * r["resshift"]["params"].value
                    and r["dit_sr"]["flops"].value < r["resshift"]["flops"].value
                ),
            )
        ],
    ),
    "complexity_by_kind": Table({"dit_sr": _EXACT(by_kind, seconds=2)}),
    "conditioning": Table(
        {kind: _EXACT(partial(conditioning, kind=kind), seconds=4) for kind in KINDS},
        claims=[
            Claim(
                "AdaFM needs about a tenth of AdaLN's parameters",
                lambda r: (
                    r["adafm"]["conditioning_full"].value
                    < 0.15 * r["adaln"]["conditioning_full"].value
                ),
            )
        ],
    ),
    "val_sr": Table(
        {
            **{
                mode: _ON_VAL_SR(partial(interpolation, mode=mode), seconds=10, scale="exact")
                for mode in ("bicubic", "bilinear", "nearest")
            },
            "dit_sr_small": _ON_VAL_SR(small, seconds=150, scale="small"),
        },
        claims=[
            Claim(
                "the small network looks better than bicubic (LPIPS)",
                lambda r: r["dit_sr_small"]["lpips"].value < r["bicubic"]["lpips"].value,
            )
        ],
    ),
    "few_steps": Table(
        {
            f"steps_{n}": _ON_VAL_SR(partial(few_steps, steps=n), seconds=10 * n, scale="small")
            for n in (15, 5)
        },
        claims=[
            Claim(
                "a third of the steps costs less than 0.5 dB",
                lambda r: abs(r["steps_15"]["psnr"].value - r["steps_5"]["psnr"].value) < 0.5,
            )
        ],
    ),
    "frequency_gains": Table(
        {
            name: Recipe(partial(frequency_gains, high=high), seconds=2, scale="small")
            for name, high in (("low", False), ("high", True))
        },
        claims=[
            Claim(
                "high frequencies are let through more at clean steps than at noisy ones",
                lambda r: r["high"]["t0"].value > r["high"]["t14"].value,
            )
        ],
    ),
    "ablation_conditioning": Table(
        {kind: _TRAINED(partial(ablate_conditioning, kind=kind)) for kind in KINDS},
        claims=[
            Claim(
                "AdaFM is ahead of AdaLN (error of the clean latent)",
                ahead("adafm", "adaln", ["val_mse"], smaller=True),
            ),
            Claim(
                "without knowing the step the network is worse than with AdaFM",
                ahead("adafm", "none", ["val_mse"], smaller=True),
            ),
        ],
    ),
    "ablation_shape": Table(
        {
            name: _TRAINED(partial(ablate_shape, flat=flat))
            for name, flat in (("u_shape", False), ("isotropic", True))
        },
        claims=[
            Claim(
                "at about equal FLOPs the U shape is ahead of one resolution",
                ahead("u_shape", "isotropic", ["val_mse"], smaller=True),
            )
        ],
    ),
}
