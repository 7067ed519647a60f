"""What the tables' recipes compute (see papers_shared.tables.recipe): counts, scores, trainings."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor, nn

from dukd.config import TrainConfig
from dukd.distill import LogitsKD
from dukd.family import FAMILY, load_restorer
from dukd.model import VARIANTS, build
from dukd.teachers import load_teacher
from dukd.train import train
from dukd.upcycling import OPERATIONS, InvertibleTransforms
from papers_shared._counting import copy_on
from papers_shared.cli import load_config
from papers_shared.complexity import count_macs, count_parameters
from papers_shared.data.resize import imresize
from papers_shared.metrics.restoration import PSNR
from papers_shared.restoration.benchmarks import SuperResolutionSet
from papers_shared.restoration.protocols import Scores, measure
from papers_shared.restoration.task import Task
from papers_shared.tables.recipe import Context, Measured, Needs

SR_SETS = ("set5", "set14", "bsd100")
# Height and width of an input whose result is 1280 x 720, as the recordings have them.
LOW = {2: (360, 640), 3: (240, 426), 4: (180, 320)}
WINDOWED = {2: (360, 640), 3: (240, 432), 4: (184, 320)}  # of SwinIR: multiples of 8


# --- counts -------------------------------------------------------------------------------------


def sizes(context: Context, *, variant: str) -> dict[str, Measured]:
    """Parameters (M); G multiply-accumulates of convolutions, linear layers and products.

    At scale 4 also of an input of 256x256, and of the paper's pairs there with what fvcore adds:
    one for each element that is averaged over space, five for each that is layer-normalised.
    """
    config = VARIANTS[variant]
    # basicsr's SwinIR takes numbers out of tensors, which those of "meta" do not have.
    swinir = config.arch == "SwinIR"
    with torch.device("cpu" if swinir else "meta"):
        network = build(config, implementation="own")
    scale = config.upscale
    height, width = (WINDOWED if swinir else LOW)[scale]
    row = {
        "params": Measured(count_parameters(network) / 1e6),
        "macs_720": Measured(_macs(network, height, width) / 1e9),
    }
    if scale == 4:
        macs = _macs(network, 256, 256)
        row["macs_256"] = Measured(macs / 1e9)
        if "teacher" in variant or "student" in variant:
            row["flops"] = Measured((macs + fvcore_extras(network, 256, 256)) / 1e9)
    return row


def _macs(network: nn.Module, height: int, width: int) -> float:
    return count_macs(network, (1, 3, height, width), rule="flop_counter").total / 2


def fvcore_extras(network: nn.Module, height: int, width: int) -> int:
    """What fvcore counts beside convolutions and products: see ``sizes``.

    Source: dukd sheet 3.6.
    """
    twin, counted = copy_on(network, "meta"), []
    for module in twin.modules():
        factor = {nn.AdaptiveAvgPool2d: 1, nn.LayerNorm: 5}.get(type(module), 0)
        if factor:
            module.register_forward_hook(
                lambda m, given, made, factor=factor: counted.append(factor * given[0].numel())
            )
    with torch.no_grad():
        twin(torch.empty(1, 3, height, width, device="meta"))
    return sum(counted)


# --- two defects of the released code ------------------------------------------------------------


def wrong_labels(context: Context, *, probability: float) -> dict[str, Measured]:
    """Share (%) of the items whose transforms the released code does not undo."""
    generator = torch.Generator().manual_seed(context.seed)
    picture = torch.rand(1, 3, 4, 4, generator=generator)
    shares = {"released": 0.0, "exact": 0.0}
    for chosen in itertools.product((False, True), repeat=4):
        items = {name: [0] * bit for name, bit in zip(OPERATIONS, chosen, strict=True)}
        transforms = InvertibleTransforms.of(1, items)
        likely = 1.0
        for bit in chosen:
            likely *= probability if bit else 1 - probability
        for name in shares:
            back = transforms.undo(transforms.apply(picture), released_order=name == "released")
            shares[name] += 100 * likely * (not torch.allclose(back, picture))
    return {name: Measured(share) for name, share in shares.items()}


def fakd_gradient(context: Context) -> dict[str, Measured]:
    """Largest difference (%) of the released FAKD's gradient from that of logits KD, relative."""
    torch.manual_seed(context.seed)
    teacher, student = (
        build({"arch": "EDSR", "upscale": 2, "num_feat": f, "num_block": 4}, implementation="own")
        for f in (16, 8)
    )
    lr, hr = torch.rand(2, 3, 10, 10), torch.rand(2, 3, 20, 20)
    found = []
    both: tuple[dict[str, Any], ...] = ({}, {"features": "SA", "released_gradient": True})
    for options in both:
        student.zero_grad()
        LogitsKD(teacher, student, **options).loss(lr, hr).backward()
        found.append(
            torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
        )
    logits, fakd = found
    return {"released": Measured((100 * (fakd - logits).abs().max() / logits.abs().max()).item())}


# --- pictures -----------------------------------------------------------------------------------


def columns_of(found: Mapping[str, Scores]) -> dict[str, Measured]:
    """``{set}_{metric}`` -> the mean over the pictures."""
    return {
        f"{name}_{metric}": Measured(value, n=len(scores.images))
        for name, scores in found.items()
        for metric, value in scores.means.items()
    }


def enlarge_bicubic(x: Tensor, *, scale: int) -> Tensor:
    """MATLAB's bicubic enlargement of (1, 3, H, W)."""
    return imresize(x[0].double(), scale).float()[None]


def bicubic(context: Context, *, scale: int) -> dict[str, Measured]:
    """Scores of MATLAB's enlargement on the recipe's sets."""
    task = Task("sr", scale=scale)
    return columns_of(
        {
            name: measure(
                lambda x: enlarge_bicubic(x, scale=scale), task, name, progress=context.progress
            )
            for name in context.assets
        }
    )


def shipped(context: Context, *, weights: str) -> dict[str, Measured]:
    """Scores of weights that ship with the package, and how much they hold."""
    if not FAMILY.path_of(weights).is_file():
        raise Needs(
            f"weights/{weights}.safetensors is not in this checkout: train it with `dukd train "
            f"--config {weights}` and copy the result of the run there"
        )
    restorer = load_restorer(weights).to(context.device)
    found = {
        name: measure(
            restorer, restorer.task, name, device=context.device, progress=context.progress
        )
        for name in context.assets
        if name in SR_SETS
    }
    return columns_of(found) | {"params": Measured(count_parameters(restorer) / 1e6)}


# --- the small-scale experiment -----------------------------------------------------------------

SMALL: Mapping[str, Any] = {
    "student": "mini_x2",
    "scale": 2,
    "init": "start_x2",
    "data": ["bsds500_train"],
    "patch": 32,
    "pool": 512,
    "batch_size": 8,
    "lr": 5e-4,
    "lr_schedule": "cosine",
    "lr_end": 1e-6,
    "ema_decay": 0.99,
    "channels_last": True,
    "mixed_precision": "bf16",
    "seeds": 3,
}
TEACHER = "rlfn_x2"


def small_training(context: Context) -> dict[str, Measured]:
    """Train a student once a seed; what it scores, how near it is to the teacher, and its time."""
    settings = dict(context.settings)
    seeds = settings.pop("seeds")
    fixed = {"low_cache": context.workdir / "low", "save_every": settings["steps"]}
    judge = Judge(context, scale=settings["scale"])
    rows: list[dict[str, float]] = []
    for seed in range(context.seed, context.seed + seeds):
        run = {"seed": seed, "output": context.workdir / f"seed{seed}"}
        config = load_config(TrainConfig, None, {**settings, **fixed, **run})
        start = time.process_time()
        student = train(config).model.to(context.device)
        seconds = time.process_time() - start
        rows.append(judge(student) | {"step_ms": 1e3 * seconds / config.steps})
        context.progress(len(rows), seeds, "trainings")
    return over_seeds(rows)


def start_of_all(context: Context) -> dict[str, Measured]:
    """What the weights score that every student begins with."""
    student = load_restorer(str(SMALL["init"])).to(context.device)
    return {name: Measured(v) for name, v in Judge(context, scale=student.scale)(student).items()}


class Judge:
    """Scores of a student, and its distance from the teacher on whole pictures.

    Args:
        context: with the test sets among its assets.
        scale: of the enlargement.
    """

    def __init__(self, context: Context, *, scale: int) -> None:
        self.device, self.scale = context.device, scale
        self.sets = {name: list(SuperResolutionSet(name, scale)) for name in SR_SETS}
        teacher = load_teacher(TEACHER).to(context.device)
        with torch.no_grad():
            self._labels = [self._enlarged(teacher, pair.degraded) for pair in self.sets["set5"]]

    def _enlarged(self, network: nn.Module, low: Tensor) -> Tensor:
        return network(low[None].to(self.device)).float().clamp(0, 1).cpu()

    @torch.no_grad()
    def __call__(self, student: nn.Module) -> dict[str, float]:
        """PSNR-Y of each set, of student against teacher, and how transforms change it."""
        psnr = PSNR(channels="y", crop_border=self.scale)
        row = {}
        for name, pairs in self.sets.items():
            made = [self._enlarged(student, pair.degraded) for pair in pairs]
            each = [float(psnr(a, p.clean[None])) for a, p in zip(made, pairs, strict=True)]
            row[f"{name}_psnr"] = fmean(each)
            if name == "set5":
                near = zip(made, self._labels, strict=True)
                row["fidelity"] = fmean(float(psnr(a, b)) for a, b in near)
        return row | {"transforms": self._spread(student)}

    def _spread(self, student: nn.Module) -> float:
        """Standard deviation over the 16 transforms of Set5's mean PSNR-Y, in dB."""
        psnr = PSNR(channels="y", crop_border=self.scale)
        means = []
        for chosen in itertools.product((False, True), repeat=4):
            values = []
            for pair in self.sets["set5"]:
                x = pair.degraded[None].to(self.device)
                out = _through(student, x, dict(zip(OPERATIONS, chosen, strict=True)))
                values.append(float(psnr(out.clamp(0, 1).cpu(), pair.clean[None])))
            means.append(fmean(values))
        return pstdev(means)


def _through(student: nn.Module, x: Tensor, chosen: Mapping[str, bool]) -> Tensor:
    """The student's result of a transformed picture of any shape, transformed back."""
    sides = [side for side, name in ((-2, "h"), (-1, "v")) if chosen[name]]
    x = (1 - x if chosen["i"] else x).flip(sides)
    out = student(x.mT if chosen["t"] else x).float()
    out = (out.mT if chosen["t"] else out).flip(sides)
    return 1 - out if chosen["i"] else out


def over_seeds(rows: Sequence[Mapping[str, float]]) -> dict[str, Measured]:
    """Mean and sample deviation of each column."""
    values = {name: torch.tensor([r[name] for r in rows], dtype=torch.float64) for name in rows[0]}
    return {
        name: Measured(v.mean().item(), std=v.std().item() if len(v) > 1 else None, n=len(v))
        for name, v in values.items()
    }
