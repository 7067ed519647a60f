"""Taking heads and channels out of a Llama-like model so that stock classes load what is left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from papers_shared.checkpoints import load_file
from papers_shared.language_models import load_causal_lm, load_weights

RANKS = "low_rank"  # in config.json: module name -> rank of its factors
SIZES = "pruned_sizes"  # in config.json: [query heads, key/value heads, FFN channels] a layer
FIELDS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


def shrink_linear(
    linear: nn.Linear, *, rows: Sequence[int] | None = None, columns: Sequence[int] | None = None
) -> None:
    """Keep some outputs (rows) or inputs (columns) of a linear layer, in place."""
    weight, bias = linear.weight.data, linear.bias
    if rows is not None:
        index = torch.as_tensor(rows, device=weight.device)
        weight = weight[index]
        if bias is not None:
            linear.bias = nn.Parameter(bias.data[index].clone(), bias.requires_grad)
    if columns is not None:
        weight = weight[:, torch.as_tensor(columns, device=weight.device)]
    linear.weight = nn.Parameter(weight.clone(), linear.weight.requires_grad)
    linear.out_features, linear.in_features = weight.shape


def kept(total: int, removed: Sequence[int]) -> list[int]:
    """What is left of ``range(total)``."""
    gone = set(removed)
    return [i for i in range(total) if i not in gone]


def channels_of(heads: Sequence[int], head_dim: int) -> list[int]:
    """The channels of some heads."""
    return [head * head_dim + i for head in heads for i in range(head_dim)]


def remove_heads(attention: Any, removed: Sequence[int]) -> None:
    """Take key/value heads out of a Llama attention, each with all its query heads, in place."""
    hd = attention.head_dim
    share = attention.num_key_value_groups
    kv_heads = attention.k_proj.out_features // hd
    stay = kept(kv_heads, removed)
    if not stay:
        raise ValueError("every head would go; lower the ratio")
    queries = channels_of([kv * share + i for kv in stay for i in range(share)], hd)
    keys = channels_of(stay, hd)
    shrink_linear(attention.q_proj, rows=queries)
    shrink_linear(attention.k_proj, rows=keys)
    shrink_linear(attention.v_proj, rows=keys)
    shrink_linear(attention.o_proj, columns=queries)


def remove_channels(mlp: Any, removed: Sequence[int]) -> None:
    """Take channels out of a gated FFN, in place."""
    stay = kept(mlp.gate_proj.out_features, removed)
    if not stay:
        raise ValueError("every FFN channel would go; lower the ratio")
    shrink_linear(mlp.gate_proj, rows=stay)
    shrink_linear(mlp.up_proj, rows=stay)
    shrink_linear(mlp.down_proj, columns=stay)
    mlp.intermediate_size = len(stay)


def layer_sizes(model: Any) -> list[list[int]]:
    """[query heads, key/value heads, FFN channels] of every layer, from the weights."""
    return [
        [
            layer.self_attn.q_proj.out_features // layer.self_attn.head_dim,
            layer.self_attn.k_proj.out_features // layer.self_attn.head_dim,
            layer.mlp.gate_proj.out_features,
        ]
        for layer in model.model.layers
    ]


def update_config(model: Any) -> Any:
    """Write the sizes into the config; returns a model whose stock class accepts them.

    Layers of one size: the ordinary fields say it. Llama's own config refuses a hidden size that
    is no multiple of the heads, which Mistral's (the same network) accepts: the model is then
    returned as a Mistral. Layers of different sizes: ``config.pruned_sizes`` says them, and
    ``load_pruned`` reads it.
    """
    sizes = layer_sizes(model)
    config = model.config
    config.head_dim = model.model.layers[0].self_attn.head_dim
    if any(size != sizes[0] for size in sizes):
        setattr(config, SIZES, sizes)
        return model
    if hasattr(config, SIZES):
        delattr(config, SIZES)
    if config.model_type == "llama" and config.hidden_size % sizes[0][0]:
        return _as_mistral(model, sizes[0])
    for field, value in zip(FIELDS, sizes[0], strict=True):
        setattr(config, field, value)
    return model


def _as_mistral(model: Any, size: Sequence[int]) -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    config = model.config
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        raise ValueError(
            f"{size[0]} heads do not divide the hidden size {config.hidden_size}, which Llama's "
            f"config refuses, and with biases no stock class takes its place; choose another ratio"
        )
    apart = {"model_type", "architectures", "transformers_version", *FIELDS}
    same = {k: v for k, v in config.to_dict().items() if k not in apart}
    sizes: dict[str, Any] = dict(zip(FIELDS, size, strict=True))
    state = model.state_dict()
    made = MistralForCausalLM(MistralConfig(**{**same, "sliding_window": None}, **sizes))
    made.load_state_dict(state)
    made.generation_config = model.generation_config
    return made.to(next(iter(state.values())).dtype).train(model.training)


def save_pruned(model: Any, folder: str | Path) -> None:
    """``save_pretrained``; nothing else is needed to reload (see ``load_pruned``)."""
    model.save_pretrained(folder)


def cut_to(model: Any, sizes: Sequence[Sequence[int]]) -> None:
    """Cut a freshly built model to ``layer_sizes``, for a state dict to be loaded.

    Raises:
        ValueError: query heads that are no multiple of the key/value heads.
    """
    for layer, (heads, kv_heads, channels) in zip(model.model.layers, sizes, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        if heads != kv_heads * attention.num_key_value_groups:
            raise ValueError(f"{SIZES}: {heads} query heads for {kv_heads} key/value heads")
        total = attention.k_proj.out_features // attention.head_dim
        remove_heads(attention, range(kv_heads, total))
        remove_channels(mlp, range(channels, mlp.gate_proj.out_features))


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files."""
    state: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= load_file(file)
    return state


def load_pruned(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """Reload a structurally pruned model in one call, with transformers' own classes.

    With layers of one size this is ``AutoModelForCausalLM.from_pretrained(folder)``, which users
    can call themselves; with layers of different sizes the stock class is built first and its
    linear layers are cut to the sizes that config.json lists.

    Raises:
        FileNotFoundError: no model lies there.
        ValueError: the weights do not fit the sizes.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json; give a folder of save_pretrained")
    sizes = json.loads((folder / "config.json").read_text(encoding="utf-8")).get(SIZES)
    if sizes is None:
        return load_causal_lm(folder, dtype=dtype)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    cut_to(model, sizes)
    load_weights(model, read_tensors(folder), what=str(folder))
    return model.eval()
