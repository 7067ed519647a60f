"""The console script ``dit-sr``."""

from __future__ import annotations

from collections.abc import Sequence

from dit_sr.config import EvalConfig, ReproduceConfig, TrainConfig, UpscaleConfig
from papers_shared.cli import Command, run

CONFIGS = "dit_sr/configs"
COMMANDS = {
    "upscale": Command("enlarge photos four times", UpscaleConfig, "dit_sr.upscale:main"),
    "eval": Command("measure a network on pairs", EvalConfig, "dit_sr.eval:main"),
    "train": Command("train a network", TrainConfig, "dit_sr.train:main", configs=CONFIGS),
    "reproduce": Command("the paper's tables", ReproduceConfig, "dit_sr.reproduce:main"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (2: an error that the message says how to mend)."""
    return run("dit-sr", "Super-resolution with a diffusion transformer (DiT-SR).", COMMANDS, argv)
