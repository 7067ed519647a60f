"""What CBQ needs to know of a decoder: which norm feeds which linear layers.

Llama, Mistral, Qwen2, SmolLM and their like have one layout, OPT another; any other decoder made
of ``nn.Linear`` can be quantized without CFP's activation scales and without rotation.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from papers_shared.language_models import LAYOUTS, block_layout, block_linears, find_blocks


def scalable_pairs(block: nn.Module) -> list[tuple[nn.Module, list[nn.Linear], str]]:
    """(what is divided, what is multiplied, name of a linear that sees the inputs) of a block.

    Values to output only where every head has keys of its own (equal widths).

    Raises:
        ValueError: a block into which scales cannot be folded.
    """
    try:
        layout = block_layout(block)
    except ValueError as error:
        raise ValueError(
            f"{error}; CFP's activation scales need that: take --cfp none or weights"
        ) from None
    found: list[tuple[nn.Module, list[nn.Linear], str]] = []
    for pair in LAYOUTS[layout]:
        before: Any = block.get_submodule(pair.before)
        linears: list[Any] = [block.get_submodule(name) for name in pair.linears]
        if len(before.weight) == linears[0].in_features:
            found.append((before, linears, pair.linears[0]))
    return found


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
