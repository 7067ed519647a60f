"""The console script ``adabin``."""

from __future__ import annotations

from collections.abc import Sequence

from adabin.config import (
    EvalConfig,
    ExportConfig,
    PredictConfig,
    ReproduceConfig,
    TrainConfig,
)
from papers_shared.cli import Command, run

CONFIGS = "adabin/configs"
COMMANDS = {
    "predict": Command("name what photos show", PredictConfig, "adabin.predict:main"),
    "eval": Command("measure the accuracy of a checkpoint", EvalConfig, "adabin.eval:main"),
    "train": Command("train a network", TrainConfig, "adabin.train:main", configs=CONFIGS),
    "export": Command("pack a network into bits", ExportConfig, "adabin.packed:main"),
    "reproduce": Command("the paper's tables", ReproduceConfig, "adabin.reproduce:main"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (2: an error that the message says how to mend)."""
    return run("adabin", "Binary networks with adaptive binary sets (AdaBin).", COMMANDS, argv)
