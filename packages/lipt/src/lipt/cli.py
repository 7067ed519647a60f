"""The console script ``lipt``."""

from __future__ import annotations

from collections.abc import Sequence

from lipt.config import (
    BenchmarkConfig,
    ConvertConfig,
    EnlargeConfig,
    EvalConfig,
    ExportConfig,
    ReproduceConfig,
    RestoreConfig,
    TrainConfig,
)
from papers_shared.cli import Command, run

CONFIGS = "lipt/configs"
COMMANDS = {
    "upscale": Command("enlarge photos", EnlargeConfig, "lipt.upscale:main"),
    "denoise": Command("take noise out of photos", RestoreConfig, "lipt.denoise:main"),
    "dejpeg": Command("take JPEG artifacts out of photos", RestoreConfig, "lipt.dejpeg:main"),
    "train": Command("train a network", TrainConfig, "lipt.train:main", configs=CONFIGS),
    "eval": Command("measure a network on pictures", EvalConfig, "lipt.eval:main"),
    "export": Command("write a network as ONNX", ExportConfig, "lipt.export:main"),
    "benchmark": Command("time a network here", BenchmarkConfig, "lipt.benchmark:main"),
    "convert": Command("merge a file of weights", ConvertConfig, "lipt.convert:main"),
    "reproduce": Command("the paper's tables", ReproduceConfig, "lipt.reproduce:main"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (2: an error that the message says how to mend)."""
    return run("lipt", "Latency-aware image processing transformer (LIPT).", COMMANDS, argv)
