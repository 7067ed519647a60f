"""The options of every command. No torch here: ``--help`` and errors answer at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from papers_shared.cli import option
from papers_shared.diffusion.class_options import (
    ClassEvalConfig,
    ClassSampleConfig,
    ClassTrainConfig,
    LatentsConfig,
)
from papers_shared.restoration.commands import TrainConfig
from papers_shared.restoration.restore_commands import (
    BenchmarkConfig,
    EvalConfig,
    ExportConfig,
    RestoreConfig,
)
from papers_shared.restoration.task import Kind
from papers_shared.tables.command import ReproduceConfig

__all__ = [
    "AnyTaskConfig",
    "BenchmarkConfig",
    "DenoiseConfig",
    "ExportConfig",
    "GenerationEvalConfig",
    "GenerationSampleConfig",
    "GenerationTrainConfig",
    "LatentsConfig",
    "RegimeEvalConfig",
    "ReproduceConfig",
    "TrainConfig",
]

REGIME_HELP = (
    "how the global attention divides pictures (or tiles) larger than the crops of training: "
    "cells as trained, whose number grows; or a grid of at most 16 rows and columns of cells"
)
Regime = Literal["cells", "grid"]


@dataclass(frozen=True, kw_only=True)
class DenoiseConfig(RestoreConfig):
    """Take noise out of photos: any size, grey, alpha, 16 bits; results are PNG files beside them.

    A folder gives the same results with any number of processes (accelerate launch).
    """

    regime: Regime = option("cells", REGIME_HELP)


@dataclass(frozen=True, kw_only=True)
class AnyTaskConfig(DenoiseConfig):
    """Restore photos with weights of yours: rain, blur, noise of a camera, JPEG artifacts.

    The file says what it undoes, or --task does. A folder gives the same results with any number
    of processes (accelerate launch).
    """

    task: Kind | None = option(None, "what to undo (default: what the weights are made for)")


@dataclass(frozen=True, kw_only=True)
class RegimeEvalConfig(EvalConfig):
    """Measure a network on pictures by the protocol of its task."""

    regime: Regime = option("cells", REGIME_HELP)


GENERATION_HELP = "network of a file that does not say it itself: g16, g48, g96, g192, g384"


@dataclass(frozen=True, kw_only=True)
class GenerationSampleConfig(ClassSampleConfig):
    __doc__ = ClassSampleConfig.__doc__

    weights: str = option(..., "a file that train-generation wrote")
    variant: str = option("", GENERATION_HELP)


@dataclass(frozen=True, kw_only=True)
class GenerationTrainConfig(ClassTrainConfig):
    __doc__ = ClassTrainConfig.__doc__

    variant: str = option("g48", GENERATION_HELP)
    output: Path = option(Path("runs/ipt_v2_generation"), "folder of the run")


@dataclass(frozen=True, kw_only=True)
class GenerationEvalConfig(ClassEvalConfig):
    __doc__ = ClassEvalConfig.__doc__

    variant: str = option("", GENERATION_HELP)
