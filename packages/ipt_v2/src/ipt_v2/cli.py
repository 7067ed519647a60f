"""The console script ``ipt-v2``."""

from __future__ import annotations

from collections.abc import Sequence

from ipt_v2.config import (
    AnyTaskConfig,
    BenchmarkConfig,
    DenoiseConfig,
    ExportConfig,
    GenerationEvalConfig,
    GenerationSampleConfig,
    GenerationTrainConfig,
    LatentsConfig,
    RegimeEvalConfig,
    ReproduceConfig,
    TrainConfig,
)
from papers_shared.cli import Command, run

CONFIGS = "ipt_v2/configs"
COMMANDS = {
    "denoise": Command("take noise out of photos", DenoiseConfig, "ipt_v2.restore:denoise"),
    "restore": Command("any task, by --weights", AnyTaskConfig, "ipt_v2.restore:main"),
    "train": Command("train a network", TrainConfig, "ipt_v2.train:main", configs=CONFIGS),
    "eval": Command("measure a network on pictures", RegimeEvalConfig, "ipt_v2.eval:main"),
    "sample": Command("make pictures of classes", GenerationSampleConfig, "ipt_v2.generate:sample"),
    "train-generation": Command(
        "train a network that makes pictures of classes",
        GenerationTrainConfig,
        "ipt_v2.generate:train",
    ),
    "eval-generation": Command(
        "measure pictures that were made, or their network",
        GenerationEvalConfig,
        "ipt_v2.generate:evaluate",
    ),
    "latents": Command(
        "write pictures as latents", LatentsConfig, "papers_shared.diffusion.latent_shards:main"
    ),
    "export": Command("write a network as ONNX", ExportConfig, "ipt_v2.export:main"),
    "benchmark": Command("time a network here", BenchmarkConfig, "ipt_v2.benchmark:main"),
    "reproduce": Command("the paper's tables", ReproduceConfig, "ipt_v2.reproduce:main"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (2: an error that the message says how to mend)."""
    return run("ipt-v2", "Image restoration with hierarchical attentions (IPT-V2).", COMMANDS, argv)
