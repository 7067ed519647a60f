"""The console script ``genimage``."""

from __future__ import annotations

from collections.abc import Sequence

from genimage.config import (
    AuditConfig,
    BuildConfig,
    DetectConfig,
    EvalConfig,
    ReproduceConfig,
    TrainConfig,
)
from papers_shared.cli import Command, run

CONFIGS = "genimage/configs"
COMMANDS = {
    "detect": Command("was this picture generated?", DetectConfig, "genimage.detect:main"),
    "eval": Command("test detectors on all generators", EvalConfig, "genimage.eval:main"),
    "train": Command("train a detector", TrainConfig, "genimage.train:main", configs=CONFIGS),
    "audit": Command("what gives the classes away", AuditConfig, "genimage.audit:main"),
    "build": Command("make a benchmark of own pictures", BuildConfig, "genimage.build_set:main"),
    "reproduce": Command("the paper's tables", ReproduceConfig, "genimage.reproduce:main"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (2: an error that the message says how to mend)."""
    return run("genimage", "Detecting AI-generated images (GenImage).", COMMANDS, argv)
