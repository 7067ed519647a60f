"""A mixture of experts in the place of a feed-forward layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MoEFeedForward(nn.Module):
    """Each token goes through its ``top_k`` experts only.

    Args:
        width: D, of the tokens.
        hidden: of each expert.
        experts: E.
        top_k: experts a token; with 2 or more the gates are renormalised to sum to 1.
        capacity: an expert takes at most ``capacity * tokens * top_k / E`` tokens, later ones skip
            it (Switch and GShard: 1.25); None: no limit.

    Attributes:
        balance: after ``forward``: ``E sum_e f_e P_e``, 1 when all experts get as much; add 0.01
            times it to the loss.

    Source: Shazeer et al., Lepikhin et al., Fedus et al.; sheet 4.13.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        experts: int = 4,
        top_k: int = 2,
        capacity: float | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= experts:
            raise ValueError(f"top_k is {top_k}, expected 1 to {experts} experts")
        self.top_k, self.capacity = top_k, capacity
        self.gate = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
            for _ in range(experts)
        )
        self.balance = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        flat = x.reshape(-1, x.shape[-1])
        probabilities = F.softmax(self.gate(flat).float(), -1)
        weights, chosen = probabilities.topk(self.top_k, -1)
        if self.top_k > 1:
            weights = weights / weights.sum(-1, keepdim=True)
        count = len(self.experts)
        share = F.one_hot(chosen, count).float().sum((0, 1)) / chosen.numel()
        self.balance = count * (share * probabilities.mean(0)).sum()
        limit = None
        if self.capacity is not None:
            limit = int(self.capacity * chosen.numel() / count)
        out = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            token, slot = (chosen == index).nonzero(as_tuple=True)
            token, slot = token[:limit], slot[:limit]
            made = expert(flat[token]) * weights[token, slot, None].to(flat.dtype)
            out.index_add_(0, token, made.to(out.dtype))
        return out.view_as(x)
