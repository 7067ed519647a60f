"""The options of every command. No torch here: ``--help`` and errors answer at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from papers_shared.cli import option

RELEASED = "released"
CHECKPOINT_HELP = (
    "'released' (the authors' CIFAR-10 ResNet-20), a checkpoint of the authors' layout, "
    "or a file written by train or export"
)
VARIANT_HELP = (
    "network of a checkpoint that does not say it itself: cifar10_resnet20, cifar10_resnet18, "
    "cifar10_vgg_small, imagenet_resnet18, imagenet_resnet34"
)
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class EvalConfig:
    """Measure the accuracy of a checkpoint: CIFAR-10 (both counts) or a folder of class folders."""

    checkpoint: str = option(RELEASED, CHECKPOINT_HELP)
    variant: str = option("", VARIANT_HELP)
    data: str = option("cifar10", "'cifar10', or a folder with one folder of pictures a class")
    data_path: Path | None = option(None, "where CIFAR-10 lies, if not in a mirror or the cache")
    first: int | None = option(None, "only the first pictures, this many")
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
class ReproduceConfig:
    """Compute what this machine can of the paper's tables, beside the reported numbers."""

    table: list[str] = option([], "only these tables, for example table1")
    budget: str = option("all", "what may be run again: a time such as 10m, or all")
    output: Path | None = option(None, "folder of the results (default: results/)")
