"""Quantized language models as checkpoints that other programs read.

Both formats hold a Hugging Face model: config.json, one safetensors file, and the tokenizer's
files where one is given. Layers that are not quantized stay floating point.

| written by | loaded by, as of 2026 |
|---|---|
| ``export_compressed_tensors`` | transformers with compressed-tensors >= 0.20, vLLM |
| ``export_gptq`` | transformers with optimum and gptqmodel, vLLM; here ``load_gptq`` |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from papers_shared.checkpoints import atomic_path, save_state_dict
from papers_shared.quantization.grids import Grid, QuantizedWeight
from papers_shared.quantization.words import pack_words, unpack_words

Format = Literal["gptq", "gptq_v2"]
WEIGHTS = "model.safetensors"


def export_compressed_tensors(
    model: Any,
    quantized: Mapping[str, QuantizedWeight],
    folder: Path,
    *,
    tokenizer: Any = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a ``pack-quantized`` checkpoint.

    Args:
        model: a transformers causal LM; what is not quantized is taken from it.
        quantized: module name -> its codes; one bit width, group and symmetry for all, each zero
            in 0 .. top.
        folder: made if missing.
        tokenizer: saved beside the weights.
        dtype: of what is not quantized; None: as the model has it.

    Returns:
        the folder. An asymmetric checkpoint is read back with
        ``from_pretrained(folder, quantization_config=CompressedTensorsConfig(dequantize=True))``.

    Raises:
        ValueError: the layers are quantized differently, or a zero cannot be stored.

    Source: CBQ sheet 8 (compressed-tensors 0.20).
    """
    grid = _common_grid(quantized)
    dtype = dtype or model.dtype
    state = _other_tensors(model, quantized, dtype)
    for name, weight in quantized.items():
        scale, zero = weight.grid.scale, weight.grid.zero
        state[f"{name}.weight_packed"] = pack_words(weight.codes, bits=grid.bits)
        # 16 bits would round the scale, or its product with the codes when it is read.
        state[f"{name}.weight_scale"] = scale.float().contiguous()
        state[f"{name}.weight_shape"] = torch.tensor(weight.codes.shape)
        if not grid.symmetric:
            state[f"{name}.weight_zero_point"] = pack_words(zero, bits=grid.bits, dim=0)
    per_row = grid.scale.shape[1] == 1
    weights = {
        "num_bits": grid.bits,
        "type": "int",
        "symmetric": grid.symmetric,
        "strategy": "channel" if per_row else "group",
        "group_size": None if per_row else grid.group,
        "dynamic": False,
    }
    ignored = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in quantized
    ]
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ignored,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    return _write(model, state, config, folder, tokenizer, dtype)


def export_gptq(
    model: Any,
    quantized: Mapping[str, QuantizedWeight],
    folder: Path,
    *,
    checkpoint_format: Format = "gptq",
    tokenizer: Any = None,
) -> Path:
    """Write a GPTQ checkpoint (``qweight``, ``qzeros``, ``scales``, ``g_idx``).

    Args:
        model, quantized, folder, tokenizer: see ``export_compressed_tensors``.
        checkpoint_format: ``gptq`` stores z - 1, so every zero has to be 1 or more;
            ``gptq_v2`` stores z.

    Raises:
        ValueError: a zero of 0 under ``gptq``, scales that float16 does not hold, sizes that are
            no multiples of 32, or layers quantized differently.

    Source: CBQ sheet 8 (GPTQModel).
    """
    grid = _common_grid(quantized)
    shift = {"gptq": 1, "gptq_v2": 0}.get(checkpoint_format)
    if shift is None:
        raise ValueError(f"checkpoint_format={checkpoint_format!r}: expected gptq or gptq_v2")
    state = _other_tensors(model, quantized, model.dtype)
    for name, weight in quantized.items():
        scale, zero = weight.grid.scale, weight.grid.zero
        if any(size % 32 for size in weight.codes.shape):
            raise ValueError(f"{name} is {tuple(weight.codes.shape)}: GPTQ needs multiples of 32")
        if not torch.equal(scale.half().to(scale.dtype), scale):
            raise ValueError(f"{name}: its scales are no float16 numbers; use rule='portable'")
        if int(zero.min()) < shift:
            raise ValueError(
                f"{name} has a zero point of 0, which the format 'gptq' cannot store (readers "
                f"disagree about 0 - 1); take checkpoint_format='gptq_v2'"
            )
        state[f"{name}.qweight"] = pack_words(weight.codes.T, bits=grid.bits, dim=0)
        state[f"{name}.qzeros"] = pack_words(zero.T - shift, bits=grid.bits, dim=1)
        state[f"{name}.scales"] = scale.T.half().contiguous()
        inputs = torch.arange(weight.codes.shape[1], dtype=torch.int32)
        state[f"{name}.g_idx"] = inputs // weight.grid.group
    config = {
        "quant_method": "gptq",
        "bits": grid.bits,
        "group_size": -1 if grid.scale.shape[1] == 1 else grid.group,
        "desc_act": False,
        "sym": grid.symmetric,
        "lm_head": False,
        "checkpoint_format": checkpoint_format,
    }
    return _write(model, state, config, folder, tokenizer, model.dtype)


def load_gptq(folder: Path) -> dict[str, Tensor]:
    """The state dict of a GPTQ checkpoint with its weights dequantized, in float32.

    For machines without the GPTQ kernels: ``model.load_state_dict(load_gptq(folder))`` on a model
    of the folder's config.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: not a GPTQ checkpoint.
    """
    from safetensors.torch import load_file

    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = described.get("quantization_config", {})
    if config.get("quant_method") != "gptq":
        raise ValueError(f"{folder} is no GPTQ checkpoint: {config.get('quant_method')!r}")
    bits, shift = config["bits"], config.get("checkpoint_format", "gptq") == "gptq"
    stored = load_file(folder / WEIGHTS)
    names = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
    state = {}
    for name in names:
        index = stored.pop(f"{name}.g_idx").long()
        packed = stored.pop(f"{name}.qweight")
        codes = unpack_words(packed, bits=bits, count=len(index), dim=0).float()
        scales = stored.pop(f"{name}.scales").float()
        zeros = unpack_words(stored.pop(f"{name}.qzeros"), bits=bits, count=scales.shape[1])
        zeros = zeros.float() + int(shift)
        state[f"{name}.weight"] = ((codes - zeros[index]) * scales[index]).T.contiguous()
    return state | {name: t.float() if t.is_floating_point() else t for name, t in stored.items()}


def _common_grid(quantized: Mapping[str, QuantizedWeight]) -> Grid:
    if not quantized:
        raise ValueError("no layer is quantized, so there is nothing to export")
    kinds = set()
    for name, weight in quantized.items():
        grid = weight.grid
        per_row = grid.scale.shape[1] == 1
        kinds.add((grid.bits, 0 if per_row else grid.group, grid.symmetric))
        if grid.zero.min() < 0 or grid.zero.max() > grid.top:
            raise ValueError(
                f"{name} has zero points from {grid.zero.min():g} to {grid.zero.max():g}, which "
                f"{grid.bits} bits cannot store; quantize with rule='portable' or 'gptq'"
            )
        if grid.symmetric and not bool((grid.zero == 2 ** (grid.bits - 1)).all()):
            raise ValueError(
                f"{name} has a symmetric grid whose zero is not {2 ** (grid.bits - 1)}, which the "
                f"formats imply; quantize with rule='portable' or 'smoothquant'"
            )
    if len(kinds) > 1:
        raise ValueError(f"layers are quantized differently (bits, group, symmetric): {kinds}")
    return next(iter(quantized.values())).grid


def _other_tensors(
    model: nn.Module, quantized: Mapping[str, QuantizedWeight], dtype: torch.dtype
) -> dict[str, Tensor]:
    state = model.state_dict()
    for name in quantized:
        if f"{name}.weight" not in state:
            raise ValueError(f"the model has no layer {name!r}")
        del state[f"{name}.weight"]
    for name in getattr(model, "_tied_weights_keys", None) or ():
        if getattr(model.config, "tie_word_embeddings", False):
            state.pop(name, None)  # written once; transformers ties it again
    return {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).detach().contiguous()
        for name, tensor in state.items()
    }


def _write(
    model: Any,
    state: Mapping[str, Tensor],
    quantization: dict[str, Any],
    folder: Path,
    tokenizer: Any,
    dtype: torch.dtype,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict()
    config |= {"quantization_config": quantization, "architectures": [type(model).__name__]}
    config["dtype"] = str(dtype).removeprefix("torch.")
    save_state_dict(state, folder / WEIGHTS)
    with atomic_path(folder / "config.json") as temporary:
        text = json.dumps(config, indent=2, default=str)
        temporary.write_text(text + "\n", encoding="utf-8")
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)
    return folder
