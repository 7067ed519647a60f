"""The console script ``u-dit``."""

from __future__ import annotations

from collections.abc import Sequence

from papers_shared.cli import Command, run
from papers_shared.diffusion.class_options import ClassExportConfig
from u_dit.config import EvalConfig, LatentsConfig, ReproduceConfig, SampleConfig, TrainConfig

CONFIGS = "u_dit/configs"
COMMANDS = {
    "sample": Command("make pictures of classes", SampleConfig, "u_dit.sample:main"),
    "train": Command("train a network", TrainConfig, "u_dit.train:main", configs=CONFIGS),
    "latents": Command(
        "write pictures as latents", LatentsConfig, "papers_shared.diffusion.latent_shards:main"
    ),
    "export": Command("write a network in a small form", ClassExportConfig, "u_dit.export:main"),
    "eval": Command("measure pictures or a network", EvalConfig, "u_dit.eval:main"),
    "reproduce": Command("the paper's tables", ReproduceConfig, "u_dit.reproduce:main"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (2: an error that the message says how to mend)."""
    return run("u-dit", "Class-conditional image generation (U-DiT).", COMMANDS, argv)
