"""The console script ``cbq``."""

from __future__ import annotations

from collections.abc import Sequence

from cbq.config import EvalConfig, GenerateConfig, QuantizeConfig, ReproduceConfig, TrainConfig
from papers_shared.cli import Command, run

COMMANDS = {
    "quantize": Command("quantize a language model", QuantizeConfig, "cbq.train:main"),
    "train": Command("the same as quantize", TrainConfig, "cbq.train:main"),
    "eval": Command("measure perplexity", EvalConfig, "cbq.eval:main"),
    "generate": Command("continue a prompt", GenerateConfig, "cbq.generate:main"),
    "reproduce": Command("the paper's tables", ReproduceConfig, "cbq.reproduce:main"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (2: an error that the message says how to mend)."""
    return run("cbq", "Cross-block quantization of language models (CBQ).", COMMANDS, argv)


if __name__ == "__main__":
    raise SystemExit(main())
