"""Retention in its three forms: parallel, chunk by chunk, one token at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_compression.efficient.attention import running_products

Form = Literal["parallel", "chunkwise"]


@dataclass
class RetentionState:
    """What one token hands to the next.

    Attributes:
        kv: (B, heads, key_dim, value_dim).
        scale: (heads,), the sum of decays so far.
        position: of the next token.
    """

    kv: Tensor
    scale: Tensor
    position: int


class Retention(nn.Module):
    """Multi-scale retention, gated.

    Args:
        width: D, of the tokens.
        heads: with decays ``1 - 2^(-5 - h)``.
        value_width: of all heads together; RetNet takes twice the width.
        chunk: tokens a chunk of the chunkwise form.
        eps: of the norm of each head.
        form: what ``forward`` computes; all forms agree.

    Source: Sun et al., arXiv 2307.08621, torchscale's code; sheet 4.13.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        value_width: int | None = None,
        chunk: int = 64,
        eps: float = 1e-6,
        form: Form = "parallel",
    ) -> None:
        super().__init__()
        value_width = 2 * width if value_width is None else value_width
        if width % (2 * heads) or value_width % heads:
            raise ValueError(f"{heads} heads do not divide width {width} in pairs, or the values")
        self.heads, self.chunk, self.eps, self.form = heads, chunk, eps, form
        self.key_dim, self.value_dim = width // heads, value_width // heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, value_width, bias=False)
        self.g_proj = nn.Linear(width, value_width, bias=False)
        self.out_proj = nn.Linear(value_width, width, bias=False)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.g_proj):
            nn.init.xavier_uniform_(linear.weight, gain=2**-2.5)
        nn.init.xavier_uniform_(self.out_proj.weight, gain=2**-1)
        decay = torch.log(1 - 2 ** (-5 - torch.arange(heads, dtype=torch.float)))
        angle = 1 / 10000 ** torch.linspace(0, 1, self.key_dim // 2)
        self.register_buffer("log_decay", decay, persistent=False)
        self.register_buffer("angle", angle.repeat_interleave(2), persistent=False)
        self.log_decay: Tensor
        self.angle: Tensor

    def _project(self, x: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        place = torch.arange(first, first + x.shape[1], device=x.device, dtype=torch.float)
        turn = place[:, None] * self.angle
        sin, cos = turn.sin(), turn.cos()
        q = split(self.q_proj(x))
        k = split(self.k_proj(x) * self.key_dim**-0.5)
        return rotate_pairs(q, sin, cos), rotate_pairs(k, sin, cos), split(self.v_proj(x))

    def _finish(self, x: Tensor, out: Tensor) -> Tensor:
        out = out.transpose(1, 2)
        out = out * torch.rsqrt(out.square().mean(-1, keepdim=True) + self.eps)
        return self.out_proj(F.silu(self.g_proj(x)) * out.flatten(2))

    def _weight(self, length: int) -> Tensor:
        """(heads, T, 1): square root of the sum of decays up to each token."""
        powers = torch.arange(length, device=self.log_decay.device) * self.log_decay[:, None]
        return powers.exp().cumsum(1).sqrt()[..., None]

    def parallel(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D) through the (T, T) matrix."""
        q, k, v = self._project(x, 0)
        place = torch.arange(x.shape[1], device=x.device)
        distance = (place[:, None] - place).float()
        decay = (distance * self.log_decay[:, None, None]).exp().masked_fill(distance < 0, 0.0)
        decay = decay / decay.sum(-1, keepdim=True).sqrt()
        weights = q @ k.transpose(-1, -2) * decay
        weights = weights / weights.detach().abs().sum(-1, keepdim=True).clamp(1, 5e4)
        return self._finish(x, weights @ v)

    def chunkwise(self, x: Tensor) -> Tensor:
        """The same in time and memory linear in T."""
        q, k, v = self._project(x, 0)
        out, _ = running_products(q, k, v, log_decay=self.log_decay, chunk=self.chunk)
        return self._finish(x, out / self._weight(x.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.parallel(x) if self.form == "parallel" else self.chunkwise(x)

    def step(self, x: Tensor, state: RetentionState | None) -> tuple[Tensor, RetentionState]:
        """One token (B, 1, D) -> its output (B, 1, D) and the state."""
        first = 0 if state is None else state.position
        q, k, v = self._project(x, first)
        added = k.transpose(-1, -2) @ v
        if state is None:
            scale, kv = torch.ones_like(self.log_decay), added
        else:
            gamma = self.log_decay.exp()
            scale = state.scale * gamma + 1
            keep = (state.scale.sqrt() * gamma / scale.sqrt())[:, None, None]
            kv = state.kv * keep + added / scale.sqrt()[:, None, None]
        return self._finish(x, q @ kv), RetentionState(kv, scale, first + 1)


def rotate_pairs(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """``x cos + rot(x) sin`` with ``rot`` turning neighbours (a, b) into (-b, a)."""
    a, b = x[..., ::2], x[..., 1::2]
    return x * cos + torch.stack([-b, a], -1).flatten(-2) * sin
