"""The console script ``dukd``."""

from __future__ import annotations

from collections.abc import Sequence

from dukd.config import (
    DistillConfig,
    EnlargeConfig,
    EvalConfig,
    OptionsConfig,
    ReproduceConfig,
    TrainConfig,
)
from papers_shared.cli import Command, run

CONFIGS = "dukd/configs"
COMMANDS = {
    "upscale": Command("enlarge photos", EnlargeConfig, "dukd.upscale:main"),
    "distill": Command("teach a network of yours", DistillConfig, "dukd.train:main"),
    "train": Command("train as the paper does", TrainConfig, "dukd.train:main", configs=CONFIGS),
    "eval": Command("measure a network on pictures", EvalConfig, "dukd.eval:main"),
    "options": Command("read the authors' option files", OptionsConfig, "dukd.options:main"),
    "reproduce": Command("the paper's tables", ReproduceConfig, "dukd.reproduce:main"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (2: an error that the message says how to mend)."""
    about = "Data upcycling knowledge distillation for super-resolution (DUKD)."
    return run("dukd", about, COMMANDS, argv)
