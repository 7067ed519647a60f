"""The console script ``tad-sr``."""

from __future__ import annotations

from collections.abc import Sequence

from papers_shared.cli import Command, run
from tad_sr.config import EvalConfig, ReproduceConfig, TeacherConfig, TrainConfig, UpscaleConfig

CONFIGS = "tad_sr/configs"
COMMANDS = {
    "upscale": Command("enlarge photos four times", UpscaleConfig, "tad_sr.upscale:main"),
    "eval": Command("measure a network on pairs", EvalConfig, "tad_sr.eval:main"),
    "train": Command("distil a teacher", TrainConfig, "tad_sr.train:main", configs=CONFIGS),
    "train-teacher": Command(
        "train a ResShift teacher", TeacherConfig, "tad_sr.train_teacher:main", configs=CONFIGS
    ),
    "reproduce": Command("the paper's tables", ReproduceConfig, "tad_sr.reproduce:main"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (2: an error that the message says how to mend)."""
    return run("tad-sr", "One-step diffusion super-resolution (TAD-SR).", COMMANDS, argv)
