"""Selective state spaces: Mamba's scan and its mixer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t``, ``y_t = C_t h_t + D u_t``, times silu(z).

    Args:
        u, delta: (B, E, T).
        A: (E, N), negative.
        B, C: (B, N, T).
        D: (E,).
        z: (B, E, T), the gate.
        delta_bias: (E,), added to delta.
        delta_softplus: delta = softplus(delta).
        state: (B, E, N) of the tokens before.

    Returns:
        (B, E, T) and the state after the last token.

    Source: Gu & Dao, arXiv 2312.00752; sheet 4.13.
    """
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    h = u.new_zeros(*u.shape[:2], A.shape[1]) if state is None else state
    # Everything that does not depend on the state at once, one token's slice contiguous.
    keep = torch.exp(torch.einsum("bet,en->tben", delta, A)).unbind(0)
    add = torch.einsum("bet,bnt->tben", delta * u, B).unbind(0)
    read = C.permute(2, 0, 1)[..., None].unbind(0)
    out = []
    for decay, added, c in zip(keep, add, read, strict=True):
        h = decay * h + added
        out.append((h @ c).squeeze(-1))
    y = torch.stack(out, -1)
    if D is not None:
        y = y + D[:, None] * u
    return (y if z is None else y * F.silu(z)), h


@dataclass
class MambaState:
    """The last inputs of the convolution (B, E, kernel - 1), and the scan's state (B, E, N)."""

    conv: Tensor
    scan: Tensor


class Mamba(nn.Module):
    """Mamba's mixer.

    Args:
        width: D, of the tokens; E = ``expand`` D.
        state_size: N.
        kernel: of the causal convolution.
        expand: E / D.

    Source: Gu & Dao, arXiv 2312.00752; sheet 4.13.
    """

    def __init__(
        self, width: int, *, state_size: int = 16, kernel: int = 4, expand: int = 2
    ) -> None:
        super().__init__()
        inner, rank = expand * width, math.ceil(width / 16)
        self.inner, self.state_size, self.rank, self.kernel = inner, state_size, rank, kernel
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, kernel, groups=inner, padding=kernel - 1)
        self.x_proj = nn.Linear(inner, rank + 2 * state_size, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        steps = torch.arange(1, state_size + 1, dtype=torch.float)
        self.A_log = nn.Parameter(steps.log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        span = math.log(0.1) - math.log(1e-3)
        dt = torch.exp(torch.rand(inner) * span + math.log(1e-3))
        with torch.no_grad():  # so that softplus(bias) is dt
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def _scan(self, x: Tensor, z: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """x, z: (B, E, T) behind the convolution."""
        parts = self.x_proj(x.transpose(1, 2))
        dt, b, c = parts.split([self.rank, self.state_size, self.state_size], -1)
        delta = (dt @ self.dt_proj.weight.T).transpose(1, 2)
        y, state = selective_scan(
            x,
            delta,
            -self.A_log.exp(),
            b.transpose(1, 2),
            c.transpose(1, 2),
            D=self.D,
            z=z,
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
            state=state,
        )
        return self.out_proj(y.transpose(1, 2)), state

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        inner, z = self.in_proj(x).transpose(1, 2).chunk(2, 1)
        inner = F.silu(self.conv1d(inner)[..., : x.shape[1]])
        return self._scan(inner, z, None)[0]

    def step(self, x: Tensor, state: MambaState | None) -> tuple[Tensor, MambaState]:
        """One token (B, 1, D) -> its output (B, 1, D) and the state."""
        inner, z = self.in_proj(x).transpose(1, 2).chunk(2, 1)
        before = inner.new_zeros(len(x), self.inner, self.kernel - 1)
        past = before if state is None else state.conv
        window = torch.cat([past, inner], -1)
        mixed = (window * self.conv1d.weight[:, 0]).sum(-1, keepdim=True)
        mixed = F.silu(mixed + self.conv1d.bias[:, None])  # type: ignore[index]
        out, scan = self._scan(mixed, z, None if state is None else state.scan)
        return out, MambaState(window[..., 1:], scan)
