"""Saving a compressed model and reloading it in one call; exporting it for other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from papers_shared.checkpoints import atomic_path, load_file, load_strict, save_state_dict
from transformer_compression.core import Data, Report
from transformer_compression.methods import METHODS

if TYPE_CHECKING:
    from transformer_compression.models import Loaded

REPORT = "compression.json"
WEIGHTS = "model.safetensors"
# Methods that change what a vision transformer computes, not its parameters: applied again.
IN_PROCESS = ("h2o", "early_exit", "speculative")  # ways of running a language model
REAPPLIED = ("tome", "evit", "fused_attention")


def save(model: Any, report: Report, folder: str | Path, *, tokenizer: Any = None) -> Path:
    """Write a compressed model, its report and the tokenizer.

    Args:
        model: of ``compress``.
        report: of ``compress``.
        folder: made if missing.
        tokenizer: of a language model.

    Raises:
        ValueError: a language model whose method lives in this process alone (a cache policy).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    described: dict[str, Any] = {"report": report.as_json()}
    if hasattr(model, "save_pretrained"):
        if living := [name for name in IN_PROCESS if name in report.methods]:
            raise ValueError(
                f"{living[0]} changes how the model runs, not its weights: apply it after load"
            )
        described |= _of_language(tokenizer)
        model.save_pretrained(folder)
        if described["tokenizer"]:
            tokenizer.save_pretrained(folder)
    else:
        described |= {"domain": "vision", "vit": _vit_sizes(model)}
        save_state_dict(model.state_dict(), folder / WEIGHTS)
    return _describe(folder, described)


def _of_language(tokenizer: Any) -> dict[str, Any]:
    return {"domain": "language", "tokenizer": hasattr(tokenizer, "save_pretrained")}


def _describe(folder: Path, described: dict[str, Any]) -> Path:
    with atomic_path(folder / REPORT) as temporary:
        temporary.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return folder


def load(folder: str | Path) -> Loaded:
    """A model that ``save`` or ``export`` wrote, in floating point; it gives the same outputs.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: weights do not fit.
    """
    from transformer_compression.models import Loaded

    folder = Path(folder)
    if not (folder / REPORT).is_file():
        raise FileNotFoundError(f"{folder} has no {REPORT}; give a folder that `apply` wrote")
    described = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    if described["domain"] == "vision":
        return Loaded(_load_vit(folder, described), "vision")
    tokenizer = None
    if described["tokenizer"]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
    return Loaded(_load_language(folder), "language", tokenizer)


def export(
    model: Any, report: Report, folder: str | Path, *, format: str, tokenizer: Any = None
) -> Path:
    """Write packed codes for other programs, which compute with floating-point inputs.

    ``load`` reads them too, and quantizes the inputs where the method did.

    Args:
        model, report: of ``compress``, with a method that leaves codes (rtn, gptq, awq …).
        folder: made if missing.
        format: ``compressed-tensors``, ``gptq`` or ``gptq_v2``.
        tokenizer: of the model.

    Raises:
        ValueError: the method leaves no codes, or the format cannot store them or the layers.
    """
    from papers_shared.quantization import export_compressed_tensors, export_gptq

    if not report.quantized:
        raise ValueError(
            f"{' + '.join(report.methods)} leaves no codes to pack; take --format model, or a "
            f"method such as rtn, gptq or awq last"
        )
    folder = Path(folder)
    if unlike := _unlike_stock() & vars(model.config).keys():
        raise ValueError(
            f"{format} holds stock layers alone, which these are not any more "
            f"({', '.join(sorted(unlike))}): take --format model"
        )
    if format == "compressed-tensors":
        export_compressed_tensors(model, report.quantized, folder, tokenizer=tokenizer)
    elif format in ("gptq", "gptq_v2"):
        export_gptq(model, report.quantized, folder, checkpoint_format=format, tokenizer=tokenizer)
    else:
        raise ValueError(f"format={format!r}: expected compressed-tensors, gptq or gptq_v2")
    return _describe(folder, {"report": report.as_json(), **_of_language(tokenizer)})


def _load_language(folder: Path) -> Any:
    from papers_shared.language_models import load_causal_lm, load_weights
    from transformer_compression.others.low_rank import low_rank_structure
    from transformer_compression.prune.removal import RANKS, SIZES, cut_to, read_tensors
    from transformer_compression.quantize.qat import LEARNED_INPUTS, restore_inputs
    from transformer_compression.quantize.smooth import InputRule, quantize_inputs

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not config.keys() & _unlike_stock():
        model = load_causal_lm(folder)
    else:
        from transformers import AutoConfig, AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder), dtype=torch.float32
        ).eval()
        state = read_tensors(folder)
        if SIZES in config:
            cut_to(model, config[SIZES])
        low_rank_structure(model, config.get(RANKS, {}))
        restore_inputs(model, state, config.get(LEARNED_INPUTS, 0))
        load_weights(model, state, what=str(folder))
    if inputs := config.get("quantized_inputs"):
        quantize_inputs(model, InputRule(**inputs))
    return model


def _unlike_stock() -> set[str]:
    """Entries of config.json that say which layers are not those of the stock class."""
    from transformer_compression.prune.removal import RANKS, SIZES
    from transformer_compression.quantize.qat import LEARNED_INPUTS

    return {RANKS, SIZES, LEARNED_INPUTS}


def _vit_sizes(model: Any) -> dict[str, Any]:
    return {
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
        "head_dims": [block.attn.head_dim for block in model.blocks],
        "image_size": model.patch_embed.img_size[0],
        "patch_size": model.patch_embed.patch_size[0],
        "num_classes": model.num_classes,
    }


def _load_vit(folder: Path, described: dict[str, Any]) -> nn.Module:
    from transformer_compression.quantize.qat import restore_inputs
    from transformer_compression.quantize.vision import PREPARED, prepare
    from transformer_compression.vision.vit import build_vit

    sizes = dict(described["vit"])
    head_dims = sizes.pop("head_dims")
    state = load_file(folder / WEIGHTS)
    model = build_vit(**sizes, num_heads=sizes["embed_dim"] // head_dims[0])
    for name, linear in model.named_modules():
        key = f"{name}.weight"
        if (
            isinstance(linear, nn.Linear)
            and key in state
            and state[key].shape != linear.weight.shape
        ):
            linear.weight = nn.Parameter(torch.empty_like(state[key]))
            linear.bias = nn.Parameter(torch.empty(len(state[key])))
            linear.out_features, linear.in_features = state[key].shape
    for block, head_dim in zip(model.blocks, head_dims, strict=True):
        attention: Any = block.attn
        attention.attn_dim = attention.qkv.out_features // 3
        attention.num_heads = attention.attn_dim // head_dim
    report = described["report"]
    bits = 0
    for name, options in zip(report["methods"], report["options"], strict=True):
        if name in PREPARED:
            prepare(model, name, options)
        elif name in REAPPLIED:
            METHODS[name](model, Data(), **options)
        elif name == "lsq":
            bits = options["activation_bits"]
    restore_inputs(model, state, bits)
    load_strict(model, state, what=str(folder))
    return model.eval()
