"""Sliding-window attention with a few global tokens, in time and memory linear in the length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def window_mask(length: int, window: int, *, global_tokens: int = 0, causal: bool = True) -> Tensor:
    """bool (T, T): query i sees key j if ``|i - j| <= window`` or either is among the first ones.

    Args:
        length: T.
        window: neighbours on either side.
        global_tokens: how many leading tokens see and are seen by all.
        causal: nothing sees what comes after it.

    Source: Beltagy et al., Longformer, arXiv 2004.05150; sheet 4.13.
    """
    place = torch.arange(length)
    distance = place[:, None] - place
    seen = distance.abs() <= window
    seen |= (place[:, None] < global_tokens) | (place < global_tokens)
    return seen & (distance >= 0) if causal else seen


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, *, window: int, global_tokens: int = 0, causal: bool = True
) -> Tensor:
    """Attention under ``window_mask`` without ever making the (T, T) matrix.

    Chunks as long as the window attend to themselves and their neighbours, and to the global
    tokens; the global tokens' own rows are computed in full.

    Args:
        q, k, v: (B, heads, T, d).
        window, global_tokens, causal: see ``window_mask``.

    Returns:
        (B, heads, T, d).
    """
    if window < 1:
        raise ValueError(f"window is {window}, expected at least 1")
    b, h, length, d = q.shape
    chunks = -(-length // window)
    pad = chunks * window - length
    sides = (1, 0) if causal else (1, 1)

    def chunked(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, pad)).view(b, h, chunks, window, d)

    def neighbours(x: Tensor) -> Tensor:
        x = F.pad(chunked(x), (0, 0, 0, 0, sides[0], sides[1]))
        return torch.cat([x[:, :, i : i + chunks] for i in range(1 + sum(sides))], 3)

    place = torch.arange(chunks * window, device=q.device).view(chunks, window)
    around = torch.cat([place + (i - sides[0]) * window for i in range(1 + sum(sides))], 1)
    distance = place[:, :, None] - around[:, None]
    seen = (distance.abs() <= window) & (around >= global_tokens)[:, None]
    seen &= (around < length)[:, None]
    if causal:
        seen &= distance >= 0
    keys, values = neighbours(k), neighbours(v)
    if global_tokens:
        heads = [x[:, :, None, :global_tokens].expand(-1, -1, chunks, -1, -1) for x in (k, v)]
        keys, values = torch.cat([heads[0], keys], 3), torch.cat([heads[1], values], 3)
        first = torch.arange(global_tokens, device=q.device)
        visible = (first <= place[..., None]) if causal else first.expand(chunks, window, -1) >= 0
        seen = torch.cat([visible, seen], 2)
    # Queries of the padding see nothing; they get the first key and are cut off.
    seen[..., 0] |= ~seen.any(-1)
    out = F.scaled_dot_product_attention(chunked(q), keys, values, attn_mask=seen)
    out = out.flatten(2, 3)[:, :, :length]
    if global_tokens and not causal:
        rows = F.scaled_dot_product_attention(q[:, :, :global_tokens], k, v)
        out = torch.cat([rows, out[:, :, global_tokens:]], 2)
    return out
