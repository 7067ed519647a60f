"""What the tables' recipes compute (see papers_shared.tables.recipe): counts, scores, trainings."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipt_v2 import claims
from ipt_v2.config import TrainConfig
from ipt_v2.family import FAMILY, in_regime
from ipt_v2.feedforward import merge
from ipt_v2.generation import GENERATION_VARIANTS, IPTUNet
from ipt_v2.model import VARIANTS, Config, Regime, build
from papers_shared.cli import load_config
from papers_shared.complexity import count_macs, count_parameters
from papers_shared.images import to_uint8
from papers_shared.metrics.restoration import PSNR
from papers_shared.restoration.benchmarks import CleanSet, First
from papers_shared.restoration.family import Restorer, load_restorer
from papers_shared.restoration.protocols import (
    add_gaussian_noise,
    gaussian_denoising,
    identity,
    measure,
)
from papers_shared.restoration.restore import PhotoRestorer
from papers_shared.restoration.task import Task
from papers_shared.restoration.train import train_restorer
from papers_shared.tables.recipe import Context, Measured, Needs

TEST_SETS = ("cbsd68", "kodak24")
Picture = tuple[str, Tensor]


# --- counts -------------------------------------------------------------------------------------


def _macs(network: nn.Module, inputs: Any) -> Measured:
    return Measured(count_macs(network, inputs, rule="flop_counter").total / 2e9)


def complexity(context: Context, *, config: Config, side: int = 256) -> dict[str, Measured]:
    """Parameters (M) in training and merged, multiply-accumulates (G) of a square picture."""
    with torch.device("meta"):
        network = build(config)
    merged, shape = merge(network), (1, config.in_channels, side, side)
    return {
        "params_train": Measured(count_parameters(network) / 1e6),
        "params": Measured(count_parameters(merged) / 1e6),
        "macs_train": _macs(network, shape),
        "macs": _macs(merged, shape),
    }


def generation_counts(context: Context, *, variant: str) -> dict[str, Measured]:
    """Parameters (M) stored and merged, multiply-accumulates (G, unmerged) of a latent."""
    config = GENERATION_VARIANTS[variant]
    with torch.device("meta"):
        network = IPTUNet(config).eval()
        latent = torch.empty(1, config.in_channels, config.input_size, config.input_size)
        step, label = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    return {
        "params": Measured(count_parameters(network) / 1e6),
        "params_merged": Measured(count_parameters(merge(network)) / 1e6),
        "macs": _macs(network, [latent, step, label]),
    }


# --- claims that hold for any weights -----------------------------------------------------------


def receptive_field(context: Context, *, kind: claims.Kind) -> dict[str, Measured]:
    """The pixels that pixel (27, 30) of a map of 64 x 64 depends on."""
    torch.manual_seed(context.seed)
    seen = claims.reach(claims.attention(kind), side=64, pixel=(27, 30), seed=context.seed)
    rows, columns = (seen.any(dim).nonzero().flatten() for dim in (1, 0))
    steps = rows.diff().unique()
    return {
        "pixels": Measured(int(seen.sum())),
        "first_row": Measured(int(rows[0])),
        "last_row": Measured(int(rows[-1])),
        "first_column": Measured(int(columns[0])),
        "last_column": Measured(int(columns[-1])),
        "stride": Measured(int(steps[0]) if len(steps) == 1 else 0),
    }


def cost(context: Context, *, kind: claims.Kind) -> dict[str, Measured]:
    """Multiply-accumulates (M) of one attention on two sizes, counted and by the formula."""
    row = {}
    for side in (64, 128, 256):
        counted, formula = claims.counted_and_formula(kind, side)
        row[f"counted_{side}"] = Measured(counted / 1e6)
        row[f"formula_{side}"] = Measured(formula / 1e6)
    return row


def merging(context: Context, *, variant: str) -> dict[str, Measured]:
    """Largest relative difference between merged and unmerged results, new weights."""
    return {"difference": Measured(claims.merging_gap(VARIANTS[variant], seed=context.seed))}


# --- pictures -----------------------------------------------------------------------------------


def noisy(context: Context, *, sigma: float) -> dict[str, Measured]:
    """PSNR of the noisy pictures themselves."""
    scores = _scores(context, identity, Task("denoise", level=sigma))
    return {f"{name}_psnr": scores[f"{name}_psnr"] for name in TEST_SETS}


def shipped(context: Context) -> dict[str, Measured]:
    """The network that ships, merged, on whole pictures in cells as trained."""
    restorer = shipped_restorer("cells").to(context.device)
    return _scores(context, restorer, restorer.task)


def _scores(
    context: Context, restore: Callable[[Tensor], Tensor], task: Task
) -> dict[str, Measured]:
    row = {}
    for name in TEST_SETS:
        scores = measure(restore, task, name, device=context.device, progress=context.progress)
        for metric, value in scores.means.items():
            row[f"{name}_{metric}"] = Measured(value, n=len(scores.images))
    return row


def shipped_restorer(regime: Regime) -> Restorer:
    """The shipped denoiser, merged.

    Raises:
        Needs: it is not in this checkout.
    """
    name = FAMILY.shipped["denoise"]
    if not FAMILY.path_of(name).is_file():
        raise Needs(
            f"weights/{name}.safetensors is not in this checkout: train it with `ipt-v2 train "
            f"--config {name}` and copy model_ema.safetensors of its run there"
        )
    return load_restorer(in_regime(regime), name).merge()


REGIME_SETTINGS: Mapping[str, int] = {"pictures": 4, "enlarged": 1, "side": 1024, "tile": 256}


def regimes(context: Context, *, regime: Regime, tiled: bool = False) -> dict[str, Measured]:
    """PSNR of Kodak24's first pictures, whole and enlarged, and the distance from cells.

    ``tiled`` cuts pictures into tiles that overlap by 64 pixels; cells divide them whole.
    """
    settings = context.settings
    restorer, reference = (shipped_restorer(r).to(context.device) for r in (regime, "cells"))
    tiles = PhotoRestorer(restorer, tile=settings["tile"], overlap=64, rounded=False)
    pictures = _first("kodak24", settings["pictures"])
    enlarged = [
        (f"{name}, enlarged", _enlarged(picture, settings["side"]))
        for name, picture in pictures[: settings["enlarged"]]
    ]
    level, psnr = restorer.task.level or 0.0, PSNR()
    row = {}
    for column, chosen in (("kodak24", pictures), ("enlarged", enlarged)):
        values, distances = [], []
        for name, clean in chosen:
            degraded = add_gaussian_noise(clean, sigma=level)[None].to(context.device)
            with torch.inference_mode():
                result = tiles.restore(degraded) if tiled else whole(restorer, degraded)
                if tiled or regime != "cells":
                    difference = result - whole(reference, degraded)
                    distances.append(255 * difference.abs().mean().item())
            values.append(float(psnr(to_uint8(result), to_uint8(clean)[None])))
            context.progress(len(values), len(chosen), name)
        row[f"{column}_psnr"] = Measured(statistics.fmean(values), n=len(values))
        if distances:
            row[f"{column}_distance"] = Measured(statistics.fmean(distances), n=len(distances))
    return row


def whole(restorer: Restorer, x: Tensor) -> Tensor:
    """The result for a whole picture, clamped, on the CPU."""
    return restorer(x).clamp(0, 1).cpu()


def _first(name: str, count: int, side: int | None = None) -> list[Picture]:
    """The first pictures of a set, whole or their middle squares."""
    return [
        (title, picture if side is None else middle(picture, side))
        for title, picture in First(CleanSet(name), count)
    ]


def middle(picture: Tensor, side: int) -> Tensor:
    """The square of ``side`` in the middle of (C, H, W)."""
    top, left = ((length - side) // 2 for length in picture.shape[-2:])
    return picture[:, top : top + side, left : left + side]


def _enlarged(picture: Tensor, side: int) -> Tensor:
    """Twice as large, bicubically, and the middle of it: a photo with 4 times the pixels."""
    options: dict[str, Any] = {"mode": "bicubic", "align_corners": False}
    return middle(F.interpolate(picture[None], scale_factor=2, **options)[0].clamp(0, 1), side)


# --- small-scale trainings ----------------------------------------------------------------------

# Windows of 4 instead of 8: crops of 64 have four of them at the deepest level, so that the shifted
# branch is trained there, too.
TOY = replace(VARIANTS["cpu_toy"], window_size=4)
SMALL: Mapping[str, Any] = {
    "task": "denoise",
    "level": [25],
    "photos": ["bsds500_train"],
    "patch": 64,
    "batch_size": 4,
    "steps": 100,
    "lr": 2e-3,
    "lr_schedule": "cosine",
    "channels_last": True,
    "seeds": 3,
    "kodak24": 8,
    "cbsd68": 16,
    "side": 256,
}
EVALUATION = ("seeds", "kodak24", "cbsd68", "side")


def small_training(context: Context) -> dict[str, Measured]:
    """Train a toy network once a seed; PSNR and seams of its merged form."""
    settings = dict(context.settings)
    network = Config.of(settings.pop("network"))
    told = {name: settings.pop(name) for name in EVALUATION}
    family = replace(FAMILY, variants={"toy": network})
    fixed = {
        "variant": "toy",
        "lr_end": settings["lr"] / 100,
        "save_every": settings["steps"],
        "log_every": settings["steps"],
    }
    sets = {name: _first(name, told[name], told["side"]) for name in TEST_SETS}
    rows: list[dict[str, float]] = []
    for seed in range(context.seed, context.seed + told["seeds"]):
        run = {"seed": seed, "output": context.workdir / f"seed{seed}"}
        trained = train_restorer(
            load_config(TrainConfig, None, {**settings, **fixed, **run}), family
        )
        judged = Judged(trained.model.merge().to(context.device), window=network.window_size)
        row = {}
        for name, pictures in sets.items():
            scores = gaussian_denoising(
                judged, pictures, sigma=settings["level"][0], device=context.device
            )
            row[f"{name}_psnr"] = scores.means["psnr"]
        row["seam"] = judged.seam([clean for pictures in sets.values() for _, clean in pictures])
        rows.append(row)
        context.progress(len(rows), told["seeds"], "trainings")
    counts = complexity(context, config=network)
    return {
        **{name: counts[name] for name in ("params_train", "params", "macs")},
        **over_seeds(rows),
    }


class Judged:
    """A network that remembers its results, whose seams are then measured.

    Args:
        restore: (1, 3, H, W) to the same shape.
        window: side of the windows.
    """

    def __init__(self, restore: Callable[[Tensor], Tensor], *, window: int) -> None:
        self.restore, self.window = restore, window
        self.results: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        """Restore, and remember."""
        self.results.append(self.restore(x).cpu())
        return self.results[-1]

    def seam(self, clean: Sequence[Tensor]) -> float:
        """How much the errors step across borders of windows more than inside them, in levels.

        Args:
            clean: the pictures of all results, in their order.
        """
        steps = [
            window_steps(result[0] - picture, self.window)
            for result, picture in zip(self.results, clean, strict=True)
        ]
        return statistics.fmean(steps)


def window_steps(error: Tensor, window: int) -> float:
    """Mean |difference| of neighbours across borders of windows minus that inside, times 255.

    Args:
        error: (C, H, W).
        window: side of the windows, which begin at the top left.
    """
    excess = []
    for dim in (-1, -2):
        steps = error.diff(dim=dim).abs()
        across = torch.arange(steps.shape[dim], device=error.device) % window == window - 1
        border, inside = (steps.movedim(dim, 0)[mask].mean() for mask in (across, ~across))
        excess.append(255 * (border - inside).item())
    return statistics.fmean(excess)


def over_seeds(rows: Sequence[Mapping[str, float]]) -> dict[str, Measured]:
    """Mean and sample standard deviation of each column."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: Measured(
            statistics.fmean(values),
            std=statistics.stdev(values) if len(values) > 1 else None,
            n=len(values),
        )
        for name, values in columns.items()
    }
