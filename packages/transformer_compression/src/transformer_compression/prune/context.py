"""H2O: forget cached keys that little attention went to, one layer at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class H2OCache:
    """Which positions of one layer's cache stay, by accumulated attention.

    Keeps the last ``recent`` keys and, of the others, the ``heavy`` ones with the largest sum of
    attention received so far. Causal: only queries already processed count.

    Args:
        heavy: keys kept for their score.
        recent: keys kept for being last.

    Source: Zhang et al., H2O, arXiv 2306.14048, the path that really drops; sheet 4.8.
    """

    def __init__(self, *, heavy: int, recent: int) -> None:
        if heavy < 0 or recent < 1:
            raise ValueError(f"heavy={heavy}, recent={recent}: expected heavy >= 0, recent >= 1")
        self.heavy, self.recent = heavy, recent
        self.scores: Tensor | None = None  # (KV heads, cached)
        self.positions: Tensor | None = None  # (KV heads, cached), places in the sequence
        self.seen = 0

    @classmethod
    def for_prompt(cls, length: int, *, heavy: float = 0.1, recent: float = 0.1) -> H2OCache:
        """Budgets as shares of the prompt's length (the authors' 10 % + 10 %)."""
        return cls(heavy=int(heavy * length), recent=max(1, int(recent * length)))

    def update(self, attention: Tensor, kv_heads: int | None = None) -> Tensor:
        """Take in the attention of new queries, evict, and say what stays.

        Args:
            attention: (heads, queries, cached + new), probabilities over the kept keys and the
                new ones.
            kv_heads: with grouped queries: the number of key/value heads; scores of the query
                heads that share one are added up.

        Returns:
            (KV heads, kept): places in the cache as it was during this attention.
        """
        heads, _, cached = attention.shape
        received = attention.sum(1)
        if kv_heads is not None and kv_heads != heads:
            received = received.view(kv_heads, heads // kv_heads, cached).sum(1)
        old = 0 if self.scores is None else self.scores.shape[1]
        fresh = cached - old
        new_places = torch.arange(self.seen, self.seen + fresh, device=received.device)
        new_places = new_places.expand(len(received), -1)
        self.seen += fresh
        if self.scores is None or self.positions is None:
            scores, positions = received, new_places
        else:
            scores = received.clone()
            scores[:, :old] += self.scores
            positions = torch.cat([self.positions, new_places], 1)
        index = torch.arange(cached, device=received.device).expand(len(received), -1)
        if cached > self.heavy + self.recent:
            split = cached - self.recent
            best = scores[:, :split].topk(self.heavy, dim=1).indices.sort(1).values
            index = torch.cat([best, index[:, split:]], 1)
            scores, positions = scores.gather(1, index), positions.gather(1, index)
        self.scores, self.positions = scores, positions
        return index


def apply_h2o(model: Any, *, heavy: int, recent: int) -> Any:
    """Let a language model's cache forget keys while it decodes, in place; weights stay.

    Every forward pass with a cache (``generate``, batch 1) evicts after each layer's attention;
    passes without one are unchanged. Kept keys stay rotated for the places where they stood.

    Args:
        model: a causal language model of transformers with the attention interface.
        heavy, recent: budgets, see ``H2OCache``.

    Returns:
        the model.

    Raises:
        ValueError: budgets out of range.
    """
    from transformers.masking_utils import AttentionMaskInterface, eager_mask
    from transformers.modeling_utils import AttentionInterface

    H2OCache(heavy=heavy, recent=recent)  # checks the budgets
    trackers: dict[int, tuple[weakref.ref[Any], H2OCache]] = {}

    def attend(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        **_: object,
    ) -> tuple[Tensor, None]:
        share = query.shape[1] // key.shape[1]
        scores = query @ key.repeat_interleave(share, 1).transpose(-1, -2) * scaling
        queries, keys = scores.shape[-2:]
        if queries > 1:  # a prompt: causal among its own keys, all cached ones visible
            place = torch.arange(queries, device=scores.device)
            future = torch.arange(keys, device=scores.device) > place[:, None] + keys - queries
            scores = scores.masked_fill(future, -torch.inf)
        attention = scores.softmax(-1)
        out = attention @ value.repeat_interleave(share, 1)
        cache = getattr(module, _CACHE, None)
        if cache is not None:
            if len(query) != 1:
                raise ValueError(f"H2O decodes one sequence at a time, not {len(query)}")
            if module.layer_idx not in trackers or trackers[module.layer_idx][0]() is not cache:
                fresh = H2OCache(heavy=heavy, recent=recent)
                trackers[module.layer_idx] = weakref.ref(cache), fresh
            tracker = trackers[module.layer_idx][1]
            index = tracker.update(attention[0].detach().float(), key.shape[1])
            layer = cache.layers[module.layer_idx]
            places = index[None, ..., None].expand(1, -1, -1, key.shape[-1])
            layer.keys, layer.values = key.gather(2, places), value.gather(2, places)
        return out.transpose(1, 2).contiguous(), None

    name = f"h2o_{heavy}_{recent}_{id(trackers)}"
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, eager_mask)
    for module in model.modules():
        if hasattr(module, "layer_idx"):
            module.register_forward_pre_hook(_remember_cache, with_kwargs=True)
    model.register_forward_pre_hook(_true_positions(trackers), with_kwargs=True)
    model.set_attn_implementation(name)
    return model


_CACHE = "_h2o_cache"


def _remember_cache(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
    object.__setattr__(module, _CACHE, _cache_of(kwargs))


def _cache_of(kwargs: dict[str, Any]) -> Any:
    """The cache, under its name of transformers before or after 5.24."""
    return kwargs.get("cache", kwargs.get("past_key_values"))


def _true_positions(
    trackers: dict[int, tuple[weakref.ref[Any], H2OCache]],
) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]:
    """Positions go on from the tokens seen, not from the shorter cache."""

    def hook(
        _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        cache = _cache_of(kwargs)
        held, tracker = trackers.get(0, (None, None))
        if cache is None or tracker is None or held is None or held() is not cache:
            return args, kwargs
        tokens = args[0] if args else kwargs["input_ids"]
        place = torch.arange(tracker.seen, tracker.seen + tokens.shape[1], device=tokens.device)
        return args, {**kwargs, "position_ids": place[None], "attention_mask": None}

    return hook
