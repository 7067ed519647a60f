"""The console script ``transformer-compression``."""

from __future__ import annotations

from collections.abc import Sequence

from papers_shared.cli import Command, run
from transformer_compression.config import (
    ApplyConfig,
    CompareConfig,
    EvalConfig,
    ListConfig,
    ReproduceConfig,
)
from transformer_compression.vision.config import VisionTrainConfig

PACKAGE = "transformer_compression"
COMMANDS = {
    "apply": Command(
        "compress a model with one method, or several in turn",
        ApplyConfig,
        f"{PACKAGE}.train:main",
        configs=f"{PACKAGE}/configs",
    ),
    "compare": Command(
        "every method on one model, in one table", CompareConfig, f"{PACKAGE}.compare:main"
    ),
    "list": Command("the taxonomy and its methods", ListConfig, f"{PACKAGE}.listing:main"),
    "eval": Command("measure one model", EvalConfig, f"{PACKAGE}.eval:main"),
    "train": Command(
        "train the small vision transformer that methods are compared on",
        VisionTrainConfig,
        f"{PACKAGE}.vision.train:train",
    ),
    "reproduce": Command("the survey's tables", ReproduceConfig, f"{PACKAGE}.reproduce:main"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (2: an error that the message says how to mend)."""
    return run(
        "transformer-compression",
        "Compression of transformers: quantization, pruning, distillation, efficient designs.",
        COMMANDS,
        argv,
    )


if __name__ == "__main__":
    raise SystemExit(main())
