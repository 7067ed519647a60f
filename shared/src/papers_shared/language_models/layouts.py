"""Which norm or linear layer of a decoder block feeds which linear layers, channel by channel.

Only there may a scale move from one to the others. Names alone do not say so: Gemma's norms
multiply by ``1 + weight``, OLMo's have no weight, OPT-350m's follow their layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call


@dataclass(frozen=True)
class Pair:
    """Linear layers that read what ``before`` gives, and nothing else that reads it."""

    before: str
    linears: tuple[str, ...]


# Llama, Mistral, Qwen2, SmolLM and their like; OPT.
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
# What else such a block may hold, because no pair is on either side of it.
_BESIDE = {
    *("self_attn.q_norm", "self_attn.k_norm", "fc2"),
    *("self_attn.query_layernorm", "self_attn.key_layernorm"),
}


def block_layout(block: nn.Module) -> str:
    """The layout of a block into whose norms and linear layers scales can be folded.

    Raises:
        ValueError: other modules, norms behind their layers, or norms whose output is not in
            proportion to their weight.
    """
    kind = type(block).__name__
    names = {name for name, _ in block.named_modules()}
    own = {
        name
        for name, m in block.named_modules()
        if next(m.parameters(recurse=False), None) is not None
    }
    for layout, pairs in LAYOUTS.items():
        known = {name for pair in pairs for name in (pair.before, *pair.linears)}
        if not known <= names:
            continue
        if others := sorted(own - known - _BESIDE):
            raise ValueError(f"{kind} also holds {', '.join(others)}: scales cannot be folded in")
        if getattr(block, "do_layer_norm_before", True) is False:
            raise ValueError(f"{kind} has its norms behind its layers: scales cannot be folded in")
        for pair in pairs:
            before = block.get_submodule(pair.before)
            if not isinstance(before, nn.Linear):
                check_norm(before, f"{pair.before} of {kind}")
        return layout
    raise ValueError(f"{kind} is no block of the Llama, Mistral, Qwen2 or OPT kind")


@torch.no_grad()
def check_norm(norm: nn.Module, what: str) -> None:
    """Refuse a norm whose output is not in proportion to its weight (and bias).

    Args:
        norm: of (..., features).
        what: its name in the message.

    Raises:
        ValueError: no weight, or one that is added to something (``1 + weight``).
    """
    parameters = dict(norm.named_parameters())
    if "weight" not in parameters:
        raise ValueError(f"{what} ({type(norm).__name__}) has no weight to fold a scale into")
    zeros = {name: torch.zeros_like(value) for name, value in parameters.items()}
    x = torch.linspace(-1, 2, len(zeros["weight"])).to(zeros["weight"])
    if functional_call(norm, zeros, (x[None, None],)).any():
        raise ValueError(
            f"{what} ({type(norm).__name__}) multiplies by more than its weight: no scale can be "
            f"folded into it"
        )
