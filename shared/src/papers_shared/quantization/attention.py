"""Queries, keys and values quantized a token and head on their way into the attention products."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from papers_shared.quantization.layers import fake_quantize_activation


def quantize_attention(block: nn.Module, bits: int) -> None:
    """Let a block quantize q (after the rotary embedding), k and v; the softmax stays float.

    The block gets a config of its own that names an attention function registered with
    transformers; keys in a cache stay float, and are quantized when they are read.

    Args:
        block: a decoder block of transformers whose attention goes through its registry.
        bits: of q, k and v.

    Raises:
        ValueError: the block's attention has no config to say so.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = f"sdpa_a{bits}"
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def quantized(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        query, key, value = (
            fake_quantize_activation(x, bits, "token_asymmetric") for x in (query, key, value)
        )
        return attend(module, query, key, value, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register(name, quantized)
    found = False
    for module in block.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            if config._attn_implementation not in ("sdpa", name):
                raise ValueError(
                    f"the model's attention is {config._attn_implementation!r}: load it with "
                    f"attn_implementation='sdpa' to quantize q, k and v"
                )
            own = copy.copy(config)
            own._attn_implementation = name
            module.config = own
            found = True
    if not found:
        raise ValueError(
            f"{type(block).__name__} has no attention config to say that q, k and v are quantized: "
            f"leave them float (cbq: --no-attention)"
        )
