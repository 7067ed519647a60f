"""Attention without a softmax over all keys: feature maps, and sums that run along."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Features = Callable[[Tensor], Tensor]


def elu_features(x: Tensor) -> Tensor:
    """``elu(x) + 1`` (Katharopoulos et al., arXiv 2006.16236)."""
    return F.elu(x) + 1


def orthogonal_directions(
    count: int, width: int, generator: torch.Generator | None = None
) -> Tensor:
    """(count, width) Gaussian directions, orthogonal within each ``width`` of them."""
    blocks = []
    for _ in range(-(-count // width)):
        draw = torch.randn(width, width, generator=generator)
        unit, _ = torch.linalg.qr(draw)
        # Rows as long as those of a Gaussian matrix, so that the estimate stays unbiased.
        lengths = torch.randn(width, width, generator=generator).norm(dim=1, keepdim=True)
        blocks.append(unit.T * lengths)
    return torch.cat(blocks)[:count]


def performer_features(x: Tensor, directions: Tensor) -> Tensor:
    """FAVOR+'s positive features: ``exp(w x - |x|^2 / 2) / sqrt(m)``, x scaled by d^-1/4.

    Products of features of q and k estimate ``exp(q k / sqrt d)``.

    Args:
        x: (..., T, d).
        directions: (m, d), ``orthogonal_directions``.

    Source: Choromanski et al., arXiv 2009.14794; sheet 4.13.
    """
    x = x * x.shape[-1] ** -0.25
    exponent = x @ directions.T - x.square().sum(-1, keepdim=True) / 2
    return exponent.exp() / len(directions) ** 0.5


def running_products(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    chunk: int = 64,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``o_t = q_t S_t``, ``S_t = gamma S_{t-1} + k_t v_t^T``, a chunk at a time.

    Within a chunk the masked product, between chunks the state: time and memory grow linearly
    with T, and the sums are exact.

    Args:
        q, k: (B, heads, T, d).
        v: (B, heads, T, e).
        log_decay: (heads,), log gamma; None: gamma = 1.
        chunk: tokens a chunk.
        state: (B, heads, d, e) of the tokens before.

    Returns:
        (B, heads, T, e) and the state after the last token.
    """
    length = q.shape[2]
    if state is None:
        state = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3])
    log_decay = q.new_zeros(q.shape[1]) if log_decay is None else log_decay
    place = torch.arange(min(chunk, length), device=q.device, dtype=q.dtype)
    distance = place[:, None] - place
    mask = (distance * log_decay[:, None, None]).exp().masked_fill(distance < 0, 0.0)
    out = []
    for start in range(0, length, chunk):
        part = slice(start, min(start + chunk, length))
        n = part.stop - part.start
        qc, kc, vc = q[:, :, part], k[:, :, part], v[:, :, part]
        inner = (qc @ kc.transpose(-1, -2) * mask[:, :n, :n]) @ vc
        since = ((place[:n] + 1) * log_decay[:, None]).exp()[..., None]
        until = ((n - 1 - place[:n]) * log_decay[:, None]).exp()[..., None]
        out.append(inner + (qc * since) @ state)
        state = (n * log_decay).exp()[:, None, None] * state
        state = state + (kc * until).transpose(-1, -2) @ vc
    return torch.cat(out, 2), state


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    features: Features = elu_features,
    causal: bool = True,
    chunk: int = 64,
    eps: float = 1e-6,
) -> Tensor:
    """``o_t = phi(q_t) S_t / (phi(q_t) z_t)`` with S and z the sums of phi(k) v^T and phi(k).

    Args:
        q, k: (B, heads, T, d).
        v: (B, heads, T, e).
        features: phi, positive.
        causal: sums up to t; else over all T.
        chunk: see ``running_products``.
        eps: keeps the division finite.

    Source: sheet 4.13.
    """
    q, k = features(q), features(k)
    v = torch.cat([v, torch.ones_like(v[..., :1])], -1)  # the last column sums up z
    if causal:
        out, _ = running_products(q, k, v, chunk=chunk)
    else:
        out = q @ (k.transpose(-1, -2) @ v)
    return out[..., :-1] / (out[..., -1:] + eps)


def linear_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None,
    *,
    features: Features = elu_features,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """One token: (B, heads, 1, d) each -> its output and the state (B, heads, d, e + 1)."""
    q, k = features(q), features(k)
    v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    added = k.transpose(-1, -2) @ v
    state = added if state is None else state + added
    out = q @ state
    return out[..., :-1] / (out[..., -1:] + eps), state
