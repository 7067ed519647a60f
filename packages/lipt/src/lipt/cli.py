"""The console script ``lipt``."""

from __future__ import annotations

from collections.abc import Sequence

from lipt.config import TrainConfig
from papers_shared.cli import Command, run

CONFIGS = "lipt/configs"
COMMANDS = {
    "train": Command("train a network", TrainConfig, "lipt.train:main", configs=CONFIGS),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (2: an error that the message says how to mend)."""
    return run("lipt", "Latency-aware image processing transformer (LIPT).", COMMANDS, argv)
