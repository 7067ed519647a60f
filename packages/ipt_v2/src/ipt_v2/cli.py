"""The console script ``ipt-v2``."""

from __future__ import annotations

from collections.abc import Sequence

from ipt_v2.config import TrainConfig
from papers_shared.cli import Command, run

CONFIGS = "ipt_v2/configs"
COMMANDS = {
    "train": Command("train a network", TrainConfig, "ipt_v2.train:main", configs=CONFIGS),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (2: an error that the message says how to mend)."""
    return run("ipt-v2", "Image restoration with hierarchical attentions (IPT-V2).", COMMANDS, argv)
