"""Early exit: a token that an intermediate layer is sure of skips the layers behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from papers_shared.language_models import find_blocks
from transformer_compression.core import Data, Outcome


@dataclass
class ExitState:
    """Of one forward pass, and counts over all of them.

    Attributes:
        exited: this token skips what is left.
        tokens: decoded one at a time so far.
        layers: that they ran through, in all.
    """

    exited: bool = False
    tokens: int = 0
    layers: int = 0

    def mean_depth(self) -> float:
        """Layers a decoded token ran through."""
        return self.layers / max(1, self.tokens)


def apply_early_exit(
    model: Any, *, threshold: float = 0.9, checks: Sequence[int] | None = None
) -> ExitState:
    """Let decoded tokens leave a Llama-like model early, in place; weights stay.

    After the layers of ``checks`` the model's own final norm and output layer are asked; where the
    largest probability exceeds ``threshold`` the hidden state is copied through the layers left,
    which only fill their caches with keys and values of it. Whole passes (prompts, perplexity) and
    batches of several sequences are unchanged.

    Args:
        model: Llama-like.
        threshold: 1 or more: no token leaves.
        checks: numbers of layers, the first being 1; default half and three quarters of the depth.

    Returns:
        counts, which grow with every decoded token.

    Raises:
        ValueError: checks outside the model, or a model of another kind.

    Source: Schuster et al., CALM, arXiv 2207.07061 (softmax confidence); sheet 4.14.
    """
    blocks = find_blocks(model)
    final = getattr(getattr(model, "model", None), "norm", None)
    inside = {name for name, _ in blocks[0].named_modules()}
    needed = {"input_layernorm", "self_attn.k_proj", "self_attn.v_proj"}
    if final is None or not needed <= inside or "self_attn.k_norm" in inside:
        raise ValueError(
            f"{type(model).__name__}: early exit knows Llama-like models, with model.norm, "
            f"input_layernorm and keys that have no norm of their own"
        )
    depth = len(blocks)
    places = {depth // 2, depth * 3 // 4} - {0} if checks is None else set(checks)
    if not places or not places <= set(range(1, depth)):
        raise ValueError(f"checks {sorted(places)}: expected numbers of 1 to {depth - 1}")
    state = ExitState()

    def begin(_module: Any, _args: tuple[Any, ...]) -> None:
        state.exited = False

    def forward(layer: Any, index: int, run: Any, hidden_states: Tensor, **arguments: Any) -> Any:
        one = hidden_states.shape[:2] == (1, 1)
        if index == 0 and one:
            state.tokens += 1
        if state.exited:
            _fill_cache(layer, hidden_states, arguments)
            return hidden_states
        out = run(hidden_states, **arguments)
        state.layers += one
        if one and index + 1 in places:
            hidden = out[0] if isinstance(out, tuple) else out
            logits = model.lm_head(final(hidden[:, -1]))
            state.exited = bool(logits.float().softmax(-1).max() > threshold)
        return out

    model.model.register_forward_pre_hook(begin)
    for index, layer in enumerate(blocks):
        layer.forward = partial(forward, layer, index, layer.forward)
    return state


@torch.no_grad()
def _fill_cache(layer: Any, hidden: Tensor, arguments: dict[str, Any]) -> None:
    """Keys and values of a skipped layer, from the copied hidden state."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    # transformers 5.24 renamed the argument.
    cache = arguments.get("cache", arguments.get("past_key_values"))
    if cache is None:
        return
    attention = layer.self_attn
    x = layer.input_layernorm(hidden)
    shape = (*x.shape[:-1], -1, attention.head_dim)
    k = attention.k_proj(x).view(shape).transpose(1, 2)
    v = attention.v_proj(x).view(shape).transpose(1, 2)
    cos, sin = arguments["position_embeddings"]
    k, _ = apply_rotary_pos_emb(k, k, cos, sin)
    cache.update(k, v, attention.layer_idx)


def early_exit_language(model: Any, data: Data, *, threshold: float) -> Outcome:
    """``apply_early_exit`` in the shape of ``METHODS``; ``details`` counts layers a token."""
    state = apply_early_exit(model, threshold=threshold)
    return Outcome(
        model,
        notes=["tokens decoded one by one may skip layers; whole passes are unchanged"],
        details=state,
    )
