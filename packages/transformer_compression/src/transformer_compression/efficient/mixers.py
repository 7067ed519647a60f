"""Token mixers with one shape: ``forward`` over a sequence, ``step`` for one token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_compression.efficient.attention import linear_attention, linear_attention_step
from transformer_compression.efficient.local import window_attention
from transformer_compression.efficient.retention import Retention
from transformer_compression.efficient.ssm import Mamba


class _HeadMixer(nn.Module):
    """Queries, keys and values of several heads, and a projection behind them."""

    def __init__(self, width: int, heads: int, *, causal: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide the width {width}")
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> q, k, v of (B, heads, T, d)."""
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return q, k, v

    def finish(self, out: Tensor) -> Tensor:
        return self.proj(out.transpose(1, 2).flatten(2))


class SoftmaxAttention(_HeadMixer):
    """Exact attention by torch's fused kernel; ``step`` keeps all keys and values."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        q, k, v = self.project(x)
        return self.finish(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal))

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One token (B, 1, D) -> its output and the grown cache."""
        q, k, v = self.project(x)
        if state is not None:
            k, v = torch.cat([state[0], k], 2), torch.cat([state[1], v], 2)
        return self.finish(F.scaled_dot_product_attention(q, k, v)), (k, v)


class LocalAttention(_HeadMixer):
    """Sliding window and leading global tokens; ``step`` keeps the window's keys and values.

    Args:
        width, heads, causal: of the mixer.
        window: neighbours that a token sees (on either side if not causal).
        global_tokens: leading tokens that all see.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        causal: bool = True,
        window: int = 64,
        global_tokens: int = 1,
    ) -> None:
        super().__init__(width, heads, causal=causal)
        self.window, self.global_tokens = window, global_tokens

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        q, k, v = self.project(x)
        out = window_attention(
            q, k, v, window=self.window, global_tokens=self.global_tokens, causal=self.causal
        )
        return self.finish(out)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One token (B, 1, D) -> its output and the cache, which stops growing."""
        q, k, v = self.project(x)
        if state is not None:
            k, v = torch.cat([state[0], k], 2), torch.cat([state[1], v], 2)
        most = self.global_tokens + self.window + 1
        if k.shape[2] > most:
            first, last = self.global_tokens, self.window + 1
            k, v = (torch.cat([y[:, :, :first], y[:, :, -last:]], 2) for y in (k, v))
        return self.finish(F.scaled_dot_product_attention(q, k, v)), (k, v)


class LinearAttention(_HeadMixer):
    """Linear attention with elu + 1."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.finish(linear_attention(*self.project(x), causal=self.causal))

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One token (B, 1, D) -> its output and the state (B, heads, d, d + 1)."""
        out, state = linear_attention_step(*self.project(x), state)
        return self.finish(out), state


class RetentionMixer(Retention):
    """Retention with as many values as keys, so that its size is near attention's."""

    def __init__(self, width: int, heads: int, *, causal: bool = True, chunk: int = 64) -> None:
        _only_causal(causal, "retention")
        super().__init__(width, heads, value_width=width, chunk=chunk, form="chunkwise")


class MambaMixer(Mamba):
    """Mamba; it has no heads."""

    def __init__(self, width: int, heads: int = 1, *, causal: bool = True) -> None:
        _only_causal(causal, "mamba")
        super().__init__(width)


class PoolingMixer(nn.Module):
    """PoolFormer's ``mean of 3 - x`` along the sequence; has no parameters.

    Args:
        width, heads: not used, for the common shape.
        causal: the mean is over a token and the two before it, else over both neighbours.
    """

    def __init__(self, width: int = 0, heads: int = 1, *, causal: bool = True) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D); positions outside count neither as sum nor in the mean."""
        sides = (2, 0) if self.causal else (1, 1)
        ones = torch.ones_like(x[:, :, :1])
        total, count = (F.pad(y, (0, 0, *sides)).unfold(1, 3, 1).sum(-1) for y in (x, ones))
        return total / count - x

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One token (B, 1, D) -> its output and the last two inputs."""
        window = x if state is None else torch.cat([state, x], 1)
        return window.mean(1, keepdim=True) - x, window[:, -2:]


def _only_causal(causal: bool, name: str) -> None:
    if not causal:
        raise ValueError(f"{name} runs forward in time only; choose linear, local or pooling")


MIXERS: Mapping[str, Callable[..., Any]] = {
    "softmax": SoftmaxAttention,
    "local": LocalAttention,
    "linear": LinearAttention,
    "retention": RetentionMixer,
    "mamba": MambaMixer,
    "pooling": PoolingMixer,
}


def build_mixer(name: str, *, width: int, heads: int, causal: bool = True, **options: Any) -> Any:
    """A fresh mixer.

    Args:
        name: a key of ``MIXERS``.
        width: D, of the tokens.
        heads: of those that have heads.
        causal: a token sees nothing after it.
        options: of the mixer, such as ``window``.

    Raises:
        ValueError: unknown name, or a mixer that cannot be what is asked.
    """
    if name not in MIXERS:
        raise ValueError(f"no mixer is called {name!r}; known: {', '.join(MIXERS)}")
    return MIXERS[name](width, heads, causal=causal, **options)


def state_bytes(state: Any) -> int:
    """Bytes of what a mixer keeps between tokens."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if is_dataclass(state) and not isinstance(state, type):
        return sum(state_bytes(getattr(state, f.name)) for f in fields(state))
    return sum(state_bytes(part) for part in state) if isinstance(state, list | tuple) else 0
