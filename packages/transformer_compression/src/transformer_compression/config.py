"""The options of every command. No torch here: ``--help`` and errors answer at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from papers_shared.cli import option
from papers_shared.tables.command import ReproduceConfig

__all__ = ["ApplyConfig", "CompareConfig", "EvalConfig", "ListConfig", "ReproduceConfig"]

MODEL_HELP = (
    "a Hugging Face folder or name; 'smollm2-135m' or 'stories260k'; a vision transformer: "
    "'vit_cifar10', a file written by vision.train, or 'timm:NAME' (of 32 pixels and 10 classes "
    "for methods that look at pictures and for accuracy)"
)
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class ApplyConfig:
    """Compress a model: one method, or several in turn, and write the result."""

    model: str = option(..., MODEL_HELP, positional=True)
    method: list[str] = option(..., "names that `list` shows, applied in this order")
    output: Path | None = option(None, "folder to write the model to")
    format: Literal["model", "compressed-tensors", "gptq", "gptq_v2"] = option(
        "model", "how: floating point, or packed codes for other programs"
    )

    sparsity: float | None = option(None, "share of weights that go, of methods that have it")
    pattern: str | None = option(None, "N:M, such as 2:4, or a share")
    bits: int | None = option(None, "bits a weight")
    group: int | None = option(None, "inputs a scale; -1: a whole row")
    ratio: float | None = option(None, "share of heads and channels that go")
    count: int | None = option(None, "layers that go")
    set: list[str] = option([], "other options of the method, each name=value")

    text: Path | None = option(None, "calibration text (default: WikiText-2's validation part)")
    pictures: int = option(32, "calibration pictures of CIFAR-10, for vision models")
    windows: int = option(8, "calibration windows")
    length: int = option(512, "tokens a window")
    seed: int = option(0, "of the calibration draw and of methods that draw")
    device: Device = option("auto", "where to compute")
    evaluate: bool = option(False, "also measure quality and latency before and after")


@dataclass(frozen=True)
class EvalConfig:
    """Quality, size, latency and memory of one model."""

    model: str = option("smollm2-135m", MODEL_HELP, positional=True)
    text: Path | None = option(None, "evaluation text (default: WikiText-2's test part)")
    window: int = option(512, "tokens a window of the perplexity")
    windows: int | None = option(10, "how many windows, from the start; none: all")
    questions: int = option(40, "zero-shot multiple-choice questions made from WikiText-2; 0: none")
    pictures: int = option(1000, "test pictures of CIFAR-10, for vision models")
    device: Device = option("auto", "where to compute")
    output: Path | None = option(None, "also write the result as JSON")


@dataclass(frozen=True)
class CompareConfig:
    """Every method that applies to a model, in one table: quality, bytes, latency, memory."""

    model: str = option("smollm2-135m", MODEL_HELP, positional=True)
    method: list[str] = option([], "only these; NAME:option=value,… sets options (default: all)")
    output: Path = option(Path("comparison"), "folder for the table, its data and plots")

    text: Path | None = option(None, "calibration text (default: WikiText-2's validation part)")
    evaluation: Path | None = option(None, "evaluation text (default: WikiText-2's test part)")
    calibration_windows: int = option(8, "calibration windows")
    calibration_length: int = option(512, "tokens a calibration window")
    calibration_pictures: int = option(32, "calibration pictures, for vision models")
    window: int = option(512, "tokens a window of the perplexity")
    windows: int = option(10, "windows of the perplexity")
    questions: int = option(40, "zero-shot questions; 0: none")
    pictures: int = option(1000, "test pictures, for vision models")
    seed: int = option(0, "of the calibration draw and of methods that draw")
    device: Device = option("auto", "where to compute")


@dataclass(frozen=True)
class ListConfig:
    """The survey's taxonomy, with the methods that stand for each leaf."""

    family: str = option(
        "",
        "only this: quantization, distillation, pruning, 'efficient architecture', others",
        positional=True,
    )
