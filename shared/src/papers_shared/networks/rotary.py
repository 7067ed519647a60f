"""2-D rotary positions of the grid attentions (U-DiT, IPT-V2).

Source: u_dit sheet 3.4; ipt_v2 sheet 3.2, step 4.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def rotate(x: Tensor, rows: int, columns: int) -> Tensor:
    """2-D rotary position: channel pairs turn by multiples of the token's column and row.

    Pair 2j turns by ``column * theta_j``, pair 2j + 1 by ``row * theta_j``, with
    ``theta_j = 10000^(-4j / width)``; worked out in float32.

    Args:
        x: (..., rows * columns, width), tokens row by row; width a multiple of 4.
    """
    cos, sin = turns(rows, columns, x.shape[-1], x.device)
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)


@functools.lru_cache(maxsize=32)
def turns(rows: int, columns: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (tokens, width / 2) each."""
    with torch.inference_mode(False):  # autograd must be able to keep them
        theta = 10000 ** (-4 * torch.arange(width // 4, dtype=torch.float32, device="cpu") / width)
        row = torch.arange(rows, device="cpu")[:, None].expand(rows, columns).flatten()
        column = torch.arange(columns, device="cpu")[None].expand(rows, columns).flatten()
        angles = torch.stack([column[:, None] * theta, row[:, None] * theta], dim=-1).flatten(1)
        return angles.cos().to(device), angles.sin().to(device)
