"""What CBQ needs to know of a decoder: which norm feeds which linear layers.

Llama, Mistral, Qwen2, SmolLM and their like have one layout, OPT another; any other decoder made
of ``nn.Linear`` can be quantized without CFP's activation scales and without rotation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from papers_shared.language_models import block_linears, find_blocks


@dataclass(frozen=True)
class Pair:
    """Linear layers that read what ``before`` gives, channel by channel."""

    before: str
    linears: tuple[str, ...]


LAYOUTS: dict[str, tuple[Pair, ...]] = {
    "llama": (
        Pair("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        Pair("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        Pair("self_attn.v_proj", ("self_attn.o_proj",)),
        Pair("mlp.up_proj", ("mlp.down_proj",)),
    ),
    "opt": (
        Pair("self_attn_layer_norm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        Pair("final_layer_norm", ("fc1",)),
        Pair("self_attn.v_proj", ("self_attn.out_proj",)),
    ),
}


def layout_name(block: nn.Module) -> str | None:
    """The layout whose modules the block has, all of them; None for another."""
    names = {name for name, _ in block.named_modules()}
    for layout, pairs in LAYOUTS.items():
        if all({pair.before, *pair.linears} <= names for pair in pairs):
            return layout
    return None


def scalable_pairs(block: nn.Module) -> list[tuple[nn.Module, list[nn.Linear], str]]:
    """(what is divided, what is multiplied, name of a linear that sees the inputs) of a block.

    Values to output only where every head has keys of its own (equal widths).

    Raises:
        ValueError: a layout that is not known.
    """
    layout = layout_name(block)
    if layout is None:
        raise ValueError(
            f"{type(block).__name__}: CFP's activation scales know the blocks of Llama, Mistral, "
            f"Qwen2 and OPT; quantize this model with --cfp none or weights"
        )
    found = []
    for pair in LAYOUTS[layout]:
        before = block.get_submodule(pair.before)
        linears = [block.get_submodule(name) for name in pair.linears]
        assert isinstance(before.weight, nn.Parameter)
        if len(before.weight) == linears[0].in_features:
            found.append((before, linears, pair.linears[0]))
    return found  # type: ignore[return-value]


def check_model(model: Any) -> nn.ModuleList:
    """The decoder blocks of a model that can be quantized.

    Raises:
        ValueError: no blocks, blocks without ``nn.Linear``, or linear layers that the rounding
            cannot take (mixtures of experts keep theirs in stacked tensors).
    """
    blocks = find_blocks(model)
    for index, block in enumerate(blocks):
        if not block_linears(block):
            raise ValueError(
                f"block {index} of {type(model).__name__} ({type(block).__name__}) holds no "
                f"nn.Linear: supported are decoders of the Llama, Mistral, Qwen2 and OPT kind"
            )
    return blocks
