"""The options of every command. No torch here: ``--help`` and errors answer at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from papers_shared.cli import option
from papers_shared.tables.command import ReproduceConfig

__all__ = ["EvalConfig", "ExportConfig", "PredictConfig", "ReproduceConfig", "TrainConfig"]

RELEASED = "released"
CHECKPOINT_HELP = (
    "'released' (the authors' CIFAR-10 ResNet-20), a checkpoint of the authors' layout, "
    "or a file written by train or export"
)
VARIANT_HELP = (
    "network of a checkpoint that does not say it itself: cifar10_resnet20, cifar10_resnet18, "
    "cifar10_vgg_small, imagenet_resnet18, imagenet_resnet34, imagenet_mobilenet"
)
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class EvalConfig:
    """Measure the accuracy of a checkpoint: CIFAR-10 (both counts) or a folder of class folders."""

    checkpoint: str = option(RELEASED, CHECKPOINT_HELP)
    variant: str = option("", VARIANT_HELP)
    data: str = option("cifar10", "'cifar10', or a folder with one folder of pictures a class")
    data_path: Path | None = option(None, "where CIFAR-10 lies, if not in a mirror or the cache")
    first: int | None = option(None, "only so many: CIFAR-10's first, random ones of a folder")
    batch_size: int = option(250, "pictures a step")
    workers: int = option(2, "processes that decode a folder's pictures")
    dtype: Literal["float32", "float64"] = option("float32", "float64: no activation flips")
    device: Device = option("auto", "where to compute")
    output: Path | None = option(None, "also write the result as JSON")


@dataclass(frozen=True)
class PredictConfig:
    """Name what photos show: the five likeliest classes of each."""

    photos: list[Path] = option(..., "pictures or folders of pictures", positional=True)
    checkpoint: str = option(RELEASED, CHECKPOINT_HELP)
    variant: str = option("", VARIANT_HELP)
    top: int = option(5, "how many classes to show")
    device: Device = option("auto", "where to compute")


@dataclass(frozen=True)
class ExportConfig:
    """Pack a trained network into bits: one safetensors file for XNOR and popcount inference."""

    output: Path = option(..., "the file to write, ending in .safetensors", positional=True)
    checkpoint: str = option(RELEASED, CHECKPOINT_HELP)
    variant: str = option("", VARIANT_HELP)


@dataclass(frozen=True)
class TrainConfig:
    """Train a network from scratch (defaults: the authors' CIFAR-10 recipe), or one of two steps.

    Started again with the same output folder, it goes on from the newest checkpoint there.
    """

    variant: str = option("cifar10_resnet20", "which network; see the README for the names")
    data: str = option("cifar10", "'cifar10', or a folder that holds ImageNet's train/ and val/")
    data_path: Path | None = option(None, "where CIFAR-10 lies, if not in a mirror or the cache")
    output: Path | None = option(None, "folder of the run (default: runs/VARIANT)")

    epochs: int = option(400, "passes over the training set")
    batch_size: int = option(128, "pictures an update, over all processes")
    optimizer: Literal["sgd", "adam"] = option("sgd", "sgd has momentum 0.9")
    lr: float = option(0.1, "learning rate at the start")
    lr_schedule: Literal["cosine", "linear"] = option("cosine", "falls to 0, once an epoch")
    weight_decay: float = option(1e-4, "L2 penalty")
    decay: Literal["all", "conv"] = option("all", "on all parameters, or 4-d and conv* ones only")
    progressive: bool = option(True, "sharpen the weights' gradient from t = 1e-3 to 10")

    w_bit: Literal[1, 32] = option(1, "32: full-precision weights, step 1 of two-step training")
    init: Path | None = option(None, "start from these weights, for example those of step 1")
    teacher: Path | None = option(None, "torchvision ResNet-34 weights: learn its soft labels")

    num_blocks: tuple[int, ...] = option((), "other depths of the stages")
    weight_set: Literal["equalised", "l1"] = option("equalised", "binary weight values (ablation)")
    adaptive: bool = option(True, "learn the activation values (ablation)")
    nonlinearity: Literal["maxout", "hardtanh"] = option("maxout", "(ablation)")
    image_size: int = option(32, "CIFAR-10 averaged down to this size (small-scale runs)")
    augment: bool = option(True, "flip and crop CIFAR's training pictures")
    limit: int | None = option(None, "only so many: CIFAR-10's first, random ones of train/")
    test_limit: int | None = option(None, "only so many test pictures, chosen likewise")

    seed: int = option(0, "of every draw")
    mixed_precision: Literal["no", "fp16", "bf16"] = option("no", "of the convolutions")
    accumulate: int = option(1, "updates are cut into so many passes")
    workers: int = option(2, "processes that prepare pictures")
    log_every: int = option(50, "updates between log lines")
    save_every: int = option(1000, "updates between checkpoints")
    tensorboard: bool = option(False, "also log for tensorboard")
