"""Attention scores and values of a transformers model during a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

NAME = "scores_and_values"


@dataclass
class Inside:
    """One entry a layer, in order; cleared by ``clear``.

    Attributes:
        scores: (B, heads, T, T) before the softmax, -inf where masked.
        values: (B, KV heads, T, d).
    """

    scores: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def clear(self) -> None:
        self.scores.clear()
        self.values.clear()


@contextmanager
def look_inside(model: Any) -> Iterator[Inside]:
    """Record attention scores and values of every forward pass within the block.

    The model attends by a plain implementation meanwhile and gets its own back afterwards.

    Args:
        model: a transformers model with the attention interface (Llama, Qwen2, OPT …).
    """
    from transformers.masking_utils import AttentionMaskInterface, eager_mask
    from transformers.modeling_utils import AttentionInterface

    inside = Inside()

    def attend(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        **_: object,
    ) -> tuple[Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        keys = key.repeat_interleave(groups, 1)
        scores = query @ keys.transpose(-1, -2) * scaling
        if attention_mask is not None:
            visible = attention_mask[..., : keys.shape[-2]] >= 0
            scores = scores.masked_fill(~visible, -torch.inf)
        inside.scores.append(scores)
        inside.values.append(value)
        out = scores.softmax(-1) @ value.repeat_interleave(groups, 1)
        return out.transpose(1, 2).contiguous(), None

    name = f"{NAME}_{id(inside)}"
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, eager_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield inside
    finally:
        model.set_attn_implementation(before)
        AttentionInterface._global_mapping.pop(name)
        AttentionMaskInterface._global_mapping.pop(name)
