"""The efficient architectures in the shape of ``METHODS``."""

from __future__ import annotations

from typing import Any

from torch import nn

from transformer_compression.core import Data, Outcome
from transformer_compression.efficient.exchange import exchange_mixers
from transformer_compression.efficient.moe import MoEFeedForward

FRESH = "fresh weights: train the model from scratch before use"


def fused_attention(model: Any, data: Data) -> Outcome:
    """Also says where the model had it already."""
    if hasattr(model, "blocks"):
        had = all(block.attn.fused_attn for block in model.blocks)
        for block in model.blocks:
            block.attn.fused_attn = True
    else:
        had = model.config._attn_implementation == "sdpa"
        model.set_attn_implementation("sdpa")
    return Outcome(model, notes=["the model had it already" if had else "same results, by blocks"])


def _exchanged(model: Any, name: str, **options: Any) -> Outcome:
    return Outcome(exchange_mixers(model, name, **options), notes=[FRESH])


def local(model: Any, data: Data, *, window: int, global_tokens: int) -> Outcome:
    """A sliding window with global tokens."""
    return _exchanged(model, "local", window=window, global_tokens=global_tokens)


def linear(model: Any, data: Data) -> Outcome:
    """Linear attention."""
    return _exchanged(model, "linear")


def retention(model: Any, data: Data) -> Outcome:
    """Retention."""
    return _exchanged(model, "retention")


def mamba(model: Any, data: Data) -> Outcome:
    """A selective state space."""
    return _exchanged(model, "mamba")


def pooling(model: Any, data: Data) -> Outcome:
    """The mean of three neighbours."""
    return _exchanged(model, "pooling")


def moe(model: Any, data: Data, *, experts: int, top_k: int) -> Outcome:
    """Experts of ``hidden / top_k`` channels: as many multiply-accumulates a token as before."""
    vit = hasattr(model, "blocks")
    for layer in model.blocks if vit else model.model.layers:
        first: nn.Linear = layer.mlp.fc1 if vit else layer.mlp.up_proj
        hidden = max(1, first.out_features // top_k)
        made = MoEFeedForward(first.in_features, hidden, experts=experts, top_k=top_k)
        layer.mlp = made.to(first.weight.device)
    return Outcome(model, notes=[FRESH])
