"""Perplexity of a causal language model on non-overlapping windows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Perplexity:
    """A perplexity and what it was measured on.

    Attributes:
        value: ``exp(mean of the windows' mean negative log likelihoods)``.
        windows: how many.
        window: tokens each.
    """

    value: float
    windows: int
    window: int


@torch.inference_mode()
def perplexity(
    model: Any,
    tokens: Tensor,
    *,
    window: int,
    windows: int | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Perplexity:
    """Mean cross entropy over the window - 1 shifted targets of each window, exponentiated.

    Args:
        model: called as ``model(ids)``; its output's ``logits`` (1, T, vocabulary) are used.
        tokens: (n,) ids; cut into windows from the start, the remainder dropped.
        window: tokens a window.
        windows: only the first so many; None: all.
        progress: called as ``progress(done, total, what)``.

    Raises:
        ValueError: a window of less than two tokens, or a text without so many windows.

    Source: the protocol of GPTQ's and OmniQuant's code (CBQ sheet 5).
    """
    if window < 2:
        raise ValueError(f"window={window}: expected 2 tokens or more")
    available = len(tokens) // window
    count = available if windows is None else windows
    if count < 1 or count > available:
        raise ValueError(
            f"{len(tokens)} tokens give {available} windows of {window}; {windows} were asked for"
        )
    device = next(model.parameters()).device
    total = 0.0
    for index in range(count):
        ids = tokens[index * window : (index + 1) * window].to(device)
        logits = model(ids[None]).logits[0, :-1]
        total += F.cross_entropy(logits.float(), ids[1:]).item()
        progress(index + 1, count, "windows")
    mean = total / count
    return Perplexity(math.exp(mean) if mean < 700 else math.inf, count, window)
