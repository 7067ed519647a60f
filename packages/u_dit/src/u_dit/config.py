"""The options of every command. No torch here: ``--help`` and errors answer at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from papers_shared.cli import option
from papers_shared.diffusion.class_options import (
    ClassEvalConfig,
    ClassSampleConfig,
    ClassTrainConfig,
    LatentsConfig,
)
from papers_shared.tables.command import ReproduceConfig

__all__ = ["EvalConfig", "LatentsConfig", "ReproduceConfig", "SampleConfig", "TrainConfig"]

WEIGHTS_HELP = (
    "a file that train wrote, one of the authors' (U-DiT-B-400k.pt), or a released name that is "
    "in the cache or a mirror (U-DiT-B-400k); default: the small network that ships"
)
VARIANT_HELP = "network of a file that does not say it itself: U-DiT-S, U-DiT-B, DiT-XL/2, ..."


@dataclass(frozen=True, kw_only=True)
class SampleConfig(ClassSampleConfig):
    __doc__ = ClassSampleConfig.__doc__

    weights: str = option("", WEIGHTS_HELP)
    variant: str = option("", VARIANT_HELP)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ClassTrainConfig):
    __doc__ = ClassTrainConfig.__doc__

    variant: str = option("U-DiT-S", VARIANT_HELP)
    output: Path = option(Path("runs/u_dit"), "folder of the run")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(ClassEvalConfig):
    __doc__ = ClassEvalConfig.__doc__

    weights: str = option("", WEIGHTS_HELP.rpartition(";")[0])
    variant: str = option("", VARIANT_HELP)
