"""H2O: forget cached keys that little attention went to, one layer at a time."""

from __future__ import annotations

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
        self._seen = 0

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
        new_places = torch.arange(self._seen, self._seen + fresh, device=received.device)
        new_places = new_places.expand(len(received), -1)
        self._seen += fresh
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
