"""The options of every command. No torch here: ``--help`` and errors answer at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from papers_shared.cli import option
from papers_shared.restoration.commands import TrainConfig
from papers_shared.restoration.restore_commands import (
    BenchmarkConfig,
    EnlargeConfig,
    EvalConfig,
    ExportConfig,
    RestoreConfig,
)
from papers_shared.restoration.task import Kind
from papers_shared.tables.command import ReproduceConfig

__all__ = [
    "BenchmarkConfig",
    "ConvertConfig",
    "EnlargeConfig",
    "EvalConfig",
    "ExportConfig",
    "ReproduceConfig",
    "RestoreConfig",
    "TrainConfig",
]


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Merge a file of weights into the form that is run: one 3x3 convolution for each HRM.

    Reads the authors' layouts (of training, half converted by their script, merged) and what train
    writes. The result tells its network and task, so that the other commands take it as it is.
    """

    source: Path = option(..., "file of weights", positional=True)
    target: Path = option(
        ..., "file to write: .safetensors, or .pt for the authors' code", positional=True
    )
    layout: Literal["deploy", "half_converted"] = option(
        "deploy", "merged; or as the authors' own script leaves it"
    )
    variant: str = option("", "network of a file that does not say it itself; guessed if left out")
    task: Kind | None = option(None, "of a file of scale 1 that does not say what it undoes")
    level: float | None = option(None, "sigma or JPEG quality of such a file")
    overwrite: bool = option(False, "write over a file that is there")
