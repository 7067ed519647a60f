"""What the tables' recipes compute (see papers_shared.tables.recipe): counts, scores, trainings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lipt.config import TrainConfig
from lipt.family import FAMILY, load_restorer
from lipt.hrm import merge
from lipt.model import VARIANTS, Config, build, set_attention_backend
from papers_shared.cli import load_config
from papers_shared.complexity import compare_latency, count_macs, count_parameters
from papers_shared.data.resize import imresize
from papers_shared.restoration.benchmarks import SuperResolutionSet
from papers_shared.restoration.protocols import Scores, identity, measure, super_resolution
from papers_shared.restoration.task import Task
from papers_shared.restoration.train import train_restorer
from papers_shared.tables.recipe import Context, Measured, Needs

# Height and width of the input whose result is 1280 x 720; at x3 the recordings have 426 columns.
LOW = {2: (360, 640), 3: (240, 426), 4: (180, 320)}
LOW_OF_PAPER = {**LOW, 3: (240, 424)}  # the size at which the paper's x3 counts come out
PAPER_FACTOR = 0.85  # the paper's FLOPs over the convolutions' multiply-accumulates


# --- counts -------------------------------------------------------------------------------------


def _deployed(config: Config) -> nn.Module:
    with torch.device("meta"):
        network = build(replace(config, deploy=True))
    set_attention_backend(network, "reference")  # plain products, which the counter knows
    return network


def parameters(context: Context, *, variant: str) -> dict[str, Measured]:
    """Parameters of the merged network in M, the 24 frozen mean-shift values included."""
    return {"params": Measured(count_parameters(_deployed(VARIANTS[variant])) / 1e6)}


def complexity(context: Context, *, variant: str) -> dict[str, Measured]:
    """Parameters (M) and multiply-accumulates (G) for a result of 1280 x 720."""
    config = VARIANTS[variant]
    network = _deployed(config)
    with torch.device("meta"):
        training = build(config)
    shape = (1, config.colors, *LOW[config.scale])
    convolutions = count_macs(network, shape).total
    products = count_macs(network, shape, rule="flop_counter").total // 2
    as_paper = count_macs(network, (1, config.colors, *LOW_OF_PAPER[config.scale])).total
    return {
        "params": Measured(count_parameters(network) / 1e6),
        "params_train": Measured(count_parameters(training) / 1e6),
        "macs_conv": Measured(convolutions / 1e9),
        "macs_attention": Measured((products - convolutions) / 1e9),
        "flops": Measured(PAPER_FACTOR * as_paper / 1e9),
    }


# --- merging ------------------------------------------------------------------------------------


def lively(config: Config, *, seed: int) -> nn.Module:
    """A network in eval mode whose batch norms have seen pictures and differ from the identity."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = build(config).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias):
                values.data += 0.1 * torch.randn(values.shape, generator=generator)
    with torch.no_grad():
        for _ in range(3):
            network(config.rgb_range * torch.rand(1, config.colors, 32, 32, generator=generator))
    return network.eval().requires_grad_(False)


def merging(context: Context, *, variant: str) -> dict[str, Measured]:
    """Largest difference between merged and unmerged results, relative to the largest value."""
    network = lively(VARIANTS[variant], seed=context.seed)
    generator = torch.Generator().manual_seed(context.seed)
    x = 255 * torch.rand(1, 3, 27, 37, generator=generator)
    with torch.inference_mode():
        wanted = network(x)
        gap = (merge(network)(x) - wanted).abs().max() / wanted.abs().max()
    return {"difference": Measured(gap.item())}


def merging_speed(context: Context, *, variant: str, side: int = 96) -> dict[str, Measured]:
    """Milliseconds of both forms, in turns on one thread, for a square input."""
    network = lively(VARIANTS[variant], seed=context.seed).to(context.device)
    merged = merge(network)
    x = 255 * torch.rand(1, 3, side, side, device=context.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            compared = compare_latency(
                {"unmerged": partial(network, x), "merged": partial(merged, x)},
                baseline="unmerged",
                warmup=1,
                rounds=3,
                device=context.device,
            )
    finally:
        torch.set_num_threads(threads)
    ms = {name: Measured(1e3 * c.latency.median, n=3) for name, c in compared.items()}
    return {**ms, "speedup": Measured(compared["merged"].speedup, n=3)}


# --- pictures -----------------------------------------------------------------------------------


def _columns(found: Mapping[str, Scores], columns: Sequence[str]) -> dict[str, Measured]:
    """``{set}_{metric}`` -> the mean, for the columns that the table has."""
    return {
        f"{name}_{metric}": Measured(value, n=len(scores.images))
        for name, scores in found.items()
        for metric, value in scores.means.items()
        if f"{name}_{metric}" in columns
    }


def enlarge_bicubic(x: Tensor, *, scale: int) -> Tensor:
    """MATLAB's bicubic enlargement of (1, 3, H, W)."""
    return imresize(x[0].double(), scale).float()[None]


def scored(
    context: Context,
    restore: Callable[[Tensor], Tensor],
    task: Task,
    *,
    columns: Sequence[str],
) -> dict[str, Measured]:
    """Scores on the recipe's test sets, as papers measure the task."""
    found = {
        name: measure(restore, task, name, device=context.device, progress=context.progress)
        for name in context.assets
    }
    return _columns(found, columns)


def untouched(context: Context, *, task: Task, columns: Sequence[str]) -> dict[str, Measured]:
    """What the degraded pictures themselves score: bicubically enlarged, noisy, or JPEGs."""
    restore = identity if task.scale == 1 else partial(enlarge_bicubic, scale=task.scale)
    return scored(replace(context, device="cpu"), restore, task, columns=columns)


def shipped(context: Context, *, kind: str, columns: Sequence[str]) -> dict[str, Measured]:
    """A network that ships with the package, merged."""
    name = FAMILY.shipped[kind]
    if not FAMILY.path_of(name).is_file():
        raise Needs(
            f"weights/{name}.safetensors is not in this checkout: train it with `lipt train "
            f"--config {name}` and copy model.safetensors of its run there"
        )
    restorer = load_restorer(name).merge().to(context.device)
    row = scored(context, restorer, restorer.task, columns=columns)
    if "params" in columns:
        row["params"] = Measured(count_parameters(restorer) / 1e6)
    return row


# --- small-scale trainings ----------------------------------------------------------------------

SMALL: Mapping[str, Any] = {
    "task": "sr",
    "scale": 2,
    "photos": ["bsds500_train"],
    "patch": 48,
    "batch_size": 16,
    "lr": 1e-3,
    "lr_schedule": "cosine",
    "mixed_precision": "bf16",
    "channels_last": True,
    "seeds": 3,
}
TOY = Config(scale=2, m_elan=2, c_elan=32, n_share=1)
TOY_DEEPER = Config(scale=2, m_elan=4, c_elan=32, n_share=1, branches="plain")


def small_training(context: Context) -> dict[str, Measured]:
    """Train a toy network once a seed; PSNR of its merged form, milliseconds of an update."""
    settings = dict(context.settings)
    seeds, network = settings.pop("seeds"), Config.of(settings.pop("network"))
    family = replace(FAMILY, variants={"toy": network})
    fixed = {
        "variant": "toy",
        "low_cache": context.workdir / "low",
        "lr_end": settings["lr"] / 100,
        "save_every": settings["steps"],
        "log_every": settings["steps"],
    }
    rows: list[dict[str, float]] = []
    for seed in range(context.seed, context.seed + seeds):
        run = {"seed": seed, "output": context.workdir / f"seed{seed}"}
        config = load_config(TrainConfig, None, {**settings, **fixed, **run})
        start = time.perf_counter()
        restorer = train_restorer(config, family).model.merge().to(context.device)
        row = {"step_ms": 1e3 * (time.perf_counter() - start) / config.steps}
        for name in ("set5", "set14"):
            pairs = SuperResolutionSet(name, network.scale)
            scores = super_resolution(restorer, pairs, scale=network.scale, device=context.device)
            row[f"{name}_psnr"] = scores.means["psnr"]
        rows.append(row)
        context.progress(len(rows), seeds, "trainings")
    values = {name: torch.tensor([r[name] for r in rows], dtype=torch.float64) for name in rows[0]}
    return {
        name: Measured(v.mean().item(), std=v.std().item() if len(v) > 1 else None, n=len(v))
        for name, v in values.items()
    }
