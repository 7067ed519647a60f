"""A small language model over bytes, whatever its mixer: what mixers are compared in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_compression.efficient.mixers import build_mixer


class _Block(nn.Module):
    def __init__(self, mixer: nn.Module, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixer = mixer
        self.ffn = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class MixerModel(nn.Module):
    """Bytes (B, T) -> logits (B, T, 256).

    Positions come from the mixers alone, except that every model has the same learned table of
    the first ``context`` places.

    Args:
        mixer: a key of ``MIXERS``, causal.
        width: of the tokens.
        layers: how many.
        heads: of the mixers that have some.
        context: longest sequence.
    """

    def __init__(
        self, mixer: str, *, width: int = 128, layers: int = 4, heads: int = 4, context: int = 256
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.places = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(
            _Block(build_mixer(mixer, width=width, heads=heads), width) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 (B, T) -> (B, T, 256)."""
        place = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embed(tokens) + self.places(place)
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.embed.weight.T

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """The same logits, one token at a time through the mixers' ``step``."""
        states: list[Any] = [None] * len(self.blocks)
        out = []
        for t in range(tokens.shape[1]):
            x = self.embed(tokens[:, t : t + 1]) + self.places.weight[t]
            for index, module in enumerate(self.blocks):
                block: Any = module
                mixed, states[index] = block.mixer.step(block.norm1(x), states[index])
                x = x + mixed
                x = x + block.ffn(block.norm2(x))
            out.append(self.norm(x) @ self.embed.weight.T)
        return torch.cat(out, 1)


def train_bytes(
    model: MixerModel,
    text: bytes,
    *,
    steps: int,
    batch: int,
    length: int,
    seed: int,
    lr: float = 2e-3,
    bf16: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> list[float]:
    """Train on random windows of a text; returns the loss of every update in nats."""
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    if len(data) <= length:
        raise ValueError(f"the text has {len(data)} bytes; a window takes {length + 1}")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    losses = []
    model.train()
    for step in range(steps):
        start = torch.randint(0, len(data) - length, (batch,), generator=generator)
        window = torch.stack([data[i : i + length + 1] for i in start.tolist()])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(window[:, :-1]).float()
        loss = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        progress(step + 1, steps, "updates")
    model.eval()
    return losses


@torch.inference_mode()
def bits_per_byte(
    model: MixerModel, text: bytes, *, length: int, windows: Sequence[int] | int = 64
) -> float:
    """Mean negative log2 probability of a text's bytes, in windows side by side.

    Args:
        model: in eval mode.
        text: what is scored.
        length: bytes a window; the first of each is not scored.
        windows: how many from the start, or which.
    """
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    chosen = range(windows) if isinstance(windows, int) else windows
    parts = torch.stack([data[i * length : (i + 1) * length] for i in chosen])
    total = 0.0
    for part in parts.split(16):
        logits = model(part[:, :-1]).float()
        total += F.cross_entropy(
            logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"
        ).item()
    return total / (len(parts) * (length - 1)) / math.log(2)
