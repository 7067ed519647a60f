"""What the rows of the table ``vision`` compute: methods on the small vision transformer."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from papers_shared.complexity import peak_memory
from papers_shared.data.cifar10 import Cifar10, load_cifar10
from papers_shared.tables.recipe import Context, Measured, Needs
from transformer_compression.compressing import compress_in_turn
from transformer_compression.core import Data
from transformer_compression.cpu_time import compare_cpu_seconds, one_thread
from transformer_compression.distill.adapters import for_resnet
from transformer_compression.distill.resnet import load_resnet20
from transformer_compression.distill.vision import distil_vit, vit_student_of
from transformer_compression.measure import linear_macs
from transformer_compression.prune.tome import apply_tome
from transformer_compression.vision.data import (
    Accuracy,
    accuracy,
    augment,
    exact_test_pictures,
    normalise,
)
from transformer_compression.vision.vit import SHIPPED, load_vit, path_of

MEGA = 1e6
PICTURES = 16  # a timed pass


def shipped_vit() -> Any:
    """The vision transformer that ships.

    Raises:
        Needs: it is not in this checkout.
    """
    if not path_of(SHIPPED).is_file():
        raise Needs(
            f"weights/{SHIPPED}.safetensors is not in this checkout: train it with `python -m "
            f"transformer_compression.vision.train` and copy model.safetensors of its run there"
        )
    return load_vit()


@cache  # unpacking the pictures takes seconds
def _split(split: Literal["train", "test"]) -> Cifar10:
    return load_cifar10(split)


def calibration(pictures: int, *, seed: int, batch: int = 32) -> Data:
    """Training pictures drawn at random, normalised, with labels."""
    train = _split("train")
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(train.images), generator=draw)[:pictures]
    images = normalise(train.images[chosen])
    return Data(list(images.split(batch)), list(train.labels[chosen].split(batch)))


def _scored(model: nn.Module, pictures: int) -> Accuracy:
    return accuracy(model.eval(), *exact_test_pictures(_split("test"), limit=pictures))


def _row(
    models: Sequence[nn.Module],
    dense: Any,
    *,
    pictures: int,
    sizes: Sequence[float],
    seconds: Sequence[float],
) -> dict[str, Measured]:
    """Quality of every draw's model; cost of the first one, beside the dense model in turns."""
    scores = [_scored(model, pictures) for model in models]
    percents = [score.percent for score in scores]
    draws = len(models)
    x = torch.randn(PICTURES, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), one_thread():
        passes = {"dense": partial(dense.eval(), x), "this": partial(models[0], x)}
        cost = compare_cpu_seconds(passes, baseline="dense", rounds=5)["this"]
        peak = peak_memory(passes["this"]).bytes
    spread = statistics.stdev(percents) if draws > 1 else None
    note = f"{scores[0].right} of {scores[0].of}" if draws == 1 else ""
    return {
        "top1": Measured(statistics.mean(percents), std=spread, n=draws, note=note),
        "parameters": Measured(sum(p.numel() for p in models[0].parameters()) / MEGA),
        "megabytes": Measured(statistics.mean(sizes) / MEGA),
        "macs": Measured(linear_macs(models[0], x) / PICTURES / MEGA),
        "milliseconds": Measured(1e3 * cost.seconds / PICTURES, n=5),
        "speedup": Measured(cost.speedup, n=5),
        "memory": Measured(peak / MEGA),
        "seconds": Measured(statistics.mean(seconds)),
    }


def dense_row(context: Context) -> dict[str, Measured]:
    """The vision transformer as it is."""
    model = shipped_vit()
    size = 2.0 * sum(p.numel() for p in model.parameters())
    return _row([model], model, pictures=context.settings["pictures"], sizes=[size], seconds=[0.0])


def compressed_row(context: Context) -> dict[str, Measured]:
    """One method or several in turn; a calibration draw each repetition."""
    settings = context.settings
    dense = shipped_vit()
    models, sizes, seconds = [], [], []
    for draw in range(settings["draws"]):
        data = calibration(settings["calibration"], seed=context.seed + draw)
        steps: list[tuple[str, dict[str, Any]]] = [
            (name, dict(options)) for name, options in settings["steps"]
        ]
        model, report = compress_in_turn(copy.deepcopy(dense), steps, data)
        models.append(model)
        sizes.append(report.bytes)
        seconds.append(sum(report.seconds))
        context.progress(draw + 1, settings["draws"], "calibration draws")
    return _row(models, dense, pictures=settings["pictures"], sizes=sizes, seconds=seconds)


def random_merging_row(context: Context) -> dict[str, Measured]:
    """ToMe's merging with drawn pairs: what choosing alike ones is worth."""
    dense, models = shipped_vit(), []
    for draw in range(context.settings["draws"]):
        generator = torch.Generator().manual_seed(context.seed + draw)
        models.append(apply_tome(copy.deepcopy(dense), context.settings["r"], random=generator))
    size = 2.0 * sum(p.numel() for p in dense.parameters())
    return _row(
        models,
        dense,
        pictures=context.settings["pictures"],
        sizes=[size],
        seconds=[0.0],
    )


def training_batches(seed: int, *, batch: int) -> Any:
    """``batches(step)``: augmented, normalised training pictures and labels, drawn at random."""
    train = _split("train")
    draw = torch.Generator().manual_seed(seed)

    def batches(step: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(0, len(train.images), (batch,), generator=draw)
        return normalise(augment(train.images[chosen], draw)), train.labels[chosen]

    return batches


def student_row(context: Context) -> dict[str, Measured]:
    """Training with the dense model as teacher: a student of some blocks, or what pruning left.

    ``settings``: teacher (``dense`` or ``resnet20``); loss; steps; batch; blocks of the student
    (empty: all); ``before`` and ``after``: methods that compress it before and after its training.
    """
    settings = context.settings
    dense = shipped_vit()
    models, sizes, seconds = [], [], []
    for draw in range(settings["draws"]):
        seed, start = context.seed + draw, time.perf_counter()
        data = calibration(settings["calibration"], seed=seed)
        blocks = settings["blocks"] or range(len(dense.blocks))
        model = vit_student_of(dense, list(blocks))
        if settings["before"]:
            model, _ = compress_in_turn(model, _steps(settings["before"]), data)
        cnn = settings["teacher"] == "resnet20"
        distil_vit(
            model,
            load_resnet20() if cnn else dense,
            training_batches(seed, batch=settings["batch"]),
            loss=settings["loss"],
            steps=settings["steps"],
            lr=settings["lr"],
            alpha=settings["alpha"],
            seed=seed,
            bf16=True,
            teacher_view=for_resnet if cnn else _same,
            progress=context.progress,
        )
        size = 2.0 * sum(p.numel() for p in model.parameters())
        if settings["after"]:
            model, report = compress_in_turn(model, _steps(settings["after"]), data)
            size = report.bytes
        models.append(model)
        sizes.append(size)
        seconds.append(time.perf_counter() - start)
    return _row(models, dense, pictures=settings["pictures"], sizes=sizes, seconds=seconds)


def _same(pictures: Tensor) -> Tensor:
    return pictures


def _steps(given: Sequence[Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, dict(options)) for name, options in given]
