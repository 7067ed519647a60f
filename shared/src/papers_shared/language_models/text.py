"""Text as token windows: WikiText-2, calibration draws."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from papers_shared import assets


def wikitext2(split: Literal["valid", "test"], *, path: Path | None = None) -> str:
    """WikiText-2's tokenised variant (with ``<unk>`` and `` @-@ ``), read whole.

    The original raw variant gives other perplexities: state the variant beside every number.

    Raises:
        FileNotFoundError: not on this machine; the message says how to get it.
    """
    if split not in ("valid", "test"):
        raise ValueError(f"split={split!r}: expected valid or test (train could not be had)")
    file = assets.fetch(f"wikitext2_{split}", path=path).path
    return file.read_text(encoding="utf-8")


def tokenize(tokenizer: Any, text: str) -> Tensor:
    """Token ids (n,) int64, without special tokens."""
    return torch.tensor(tokenizer.encode(text, add_special_tokens=False))


def calibration_windows(
    tokens: Tensor, *, count: int, length: int, seed: int, batch: int = 1
) -> list[Tensor]:
    """Windows at random places: offsets ``randrange(0, n - length - 1)``, in the order drawn.

    Args:
        tokens: (n,) ids.
        count: windows.
        length: tokens a window.
        seed: of the draw.
        batch: windows a batch.

    Returns:
        batches (batch, length).

    Raises:
        ValueError: no windows, or a text that is shorter than one.

    Source: transformer_compression sheet 7.1 (first windows of a text are one or two articles,
    and Wanda 2:4 then loses a third).
    """
    if count < 1 or length < 1:
        raise ValueError(f"{count} windows of {length} tokens: expected 1 or more of either")
    if len(tokens) < length + 2:
        raise ValueError(f"the text has {len(tokens)} tokens; a window takes {length}")
    draw = random.Random(seed)
    offsets = [draw.randrange(0, len(tokens) - length - 1) for _ in range(count)]
    windows = torch.stack([tokens[i : i + length] for i in offsets])
    return list(windows.split(batch))
