"""Quantized models on disk: three formats, one file beside them that says how they were made.

| format | read by |
|---|---|
| ``compressed-tensors`` | transformers with compressed-tensors (dequantize=True), vLLM |
| ``gptq``, ``gptq_v2`` | transformers with optimum and gptqmodel; vLLM at 4 and 8 bits |
| ``float`` | everything: the weights are dequantized |

Activations are quantized on the fly and no format of these says so: ``cbq.json`` does, and
``load_quantized`` (and so ``cbq eval`` and ``cbq generate``) heeds it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cbq.layers import HardLinear
from cbq.pipeline import Quantized
from papers_shared.checkpoints import atomic_path
from papers_shared.language_models import find_blocks, load_causal_lm
from papers_shared.quantization import (
    export_compressed_tensors,
    export_gptq,
    quantize_attention,
)

FORMATS = ("compressed-tensors", "gptq", "gptq_v2", "float")
DESCRIPTION = "cbq.json"


def runtimes(kind: str, bits: int, act_bits: int, *, symmetric: bool) -> str:
    """Which programs read such a folder today, in one line."""
    if act_bits < 16:
        return "cbq eval and cbq generate alone quantize the activations; others read the weights"
    if kind == "compressed-tensors":
        how = "" if symmetric else " (quantization_config=CompressedTensorsConfig(dequantize=True))"
        return (
            f"transformers with compressed-tensors{how}, cbq; vLLM where it has {bits}-bit kernels"
        )
    if kind.startswith("gptq"):
        vllm = "vLLM, " if bits in (4, 8) and kind == "gptq" else ""
        return f"{vllm}transformers with optimum and gptqmodel, cbq"
    return "transformers and everything that reads its float models"


def save_quantized(
    result: Quantized,
    folder: Path,
    *,
    kind: str = "compressed-tensors",
    tokenizer: Any = None,
    source: str = "",
) -> Path:
    """Write a quantized model, its tokenizer, and ``cbq.json``.

    Args:
        result: of ``quantize``.
        folder: made where it is not there.
        kind: one of FORMATS.
        tokenizer: saved beside the weights if it can be.
        source: the model's name, noted where the tokenizer cannot be saved.

    Raises:
        ValueError: unknown format, or codes that it cannot hold (see export_gptq).
        OSError: the folder cannot be written.
    """
    if kind not in FORMATS:
        raise ValueError(f"format {kind!r}: expected one of {', '.join(FORMATS)}")
    if not hasattr(tokenizer, "save_pretrained"):
        tokenizer = None
    if kind == "compressed-tensors":
        export_compressed_tensors(result.model, result.weights, folder, tokenizer=tokenizer)
    elif kind == "float":
        for name, weight in result.weights.items():
            layer = result.model.get_submodule(name)
            layer.weight = nn.Parameter(weight.dequantize(), requires_grad=False)
        result.model.float().save_pretrained(folder)  # 16 bits do not hold code times scale
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    else:
        export_gptq(
            result.model,
            result.weights,
            folder,
            checkpoint_format=kind,
            tokenizer=tokenizer,
        )
    described = {
        "format": kind,
        "tokenizer_of": source if tokenizer is None else "",
        "settings": result.settings.to_dict(),
        "act_factors": result.act_factors,
        "seconds": result.seconds,
        "windows": result.reports,
    }
    with atomic_path(folder / DESCRIPTION) as path:
        path.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return folder


def is_quantized(folder: str | Path) -> bool:
    """Whether ``save_quantized`` wrote this folder."""
    return (Path(folder) / DESCRIPTION).is_file()


def tokenizer_source(folder: str | Path) -> str:
    """Where the tokenizer of a folder is had: the folder itself, or the model it was made from."""
    described = json.loads((Path(folder) / DESCRIPTION).read_text(encoding="utf-8"))
    return described["tokenizer_of"] or str(folder)


def load_quantized(folder: Path) -> Any:
    """A model that ``save_quantized`` wrote, weights dequantized, in float32, on the CPU.

    Raises:
        FileNotFoundError: the folder was not written by it.
    """
    if not is_quantized(folder):
        raise FileNotFoundError(f"{folder} has no {DESCRIPTION}: cbq quantize did not write it")
    described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    settings, model = described["settings"], load_causal_lm(folder)
    if settings["act_bits"] < 16:
        _quantize_activations(model, settings, described["act_factors"])
    return model


def _quantize_activations(model: Any, settings: dict[str, Any], factors: dict[str, float]) -> None:
    for name, factor in factors.items():
        parent, _, child = name.rpartition(".")
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        hard = HardLinear(
            linear.weight,
            linear.bias,
            act_bits=settings["act_bits"],
            act_factor=torch.tensor([factor]),
        )
        setattr(model.get_submodule(parent), child, hard)
    if settings["attention"]:
        for block in find_blocks(model):
            quantize_attention(block, settings["act_bits"])
