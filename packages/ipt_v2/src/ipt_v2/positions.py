"""Position codes of the grid attention: Swin's bias table, Swin-V2's continuous bias, 2-D rotary.

Source: ipt_v2 sheet 3.2, step 4; u_dit sheet 3.4 (rotary).
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor


def relative_position_index(side: int) -> Tensor:
    """Row of the bias table for each pair of a side x side grid: int64 (side^2, side^2).

    ``(di + side - 1) * (2 side - 1) + dj + side - 1`` for d = the query's position minus the key's.
    """
    axis = torch.arange(side)
    difference = axis[:, None] - axis + side - 1
    rows, columns = difference[:, None, :, None], difference[None, :, None, :]
    return (rows * (2 * side - 1) + columns).reshape(side**2, side**2)


def relative_coords_table(side: int) -> Tensor:
    """What the continuous bias is worked out from: (1, 2 side - 1, 2 side - 1, 2).

    Differences scaled to -8..8, then ``sign(t) log2(|t| + 1) / log2(8)``.

    Raises:
        ValueError: a grid of one cell, which has no differences to scale.
    """
    if side < 2:
        raise ValueError("posemb_type='relbias2' needs a grid of at least 2x2 cells; got 1x1")
    t = 8 * torch.arange(1 - side, side, dtype=torch.float32) / (side - 1)
    t = t.sign() * torch.log2(t.abs() + 1) / math.log2(8)
    return torch.stack(torch.meshgrid(t, t, indexing="ij"), dim=-1)[None]


def rotate(x: Tensor, rows: int, columns: int) -> Tensor:
    """2-D rotary position: channel pairs turn by multiples of the token's column and row.

    Pair 2j turns by ``column * theta_j``, pair 2j + 1 by ``row * theta_j``, with
    ``theta_j = 10000^(-4j / width)``; worked out in float32.

    Args:
        x: (..., rows * columns, width), tokens row by row; width a multiple of 4.
    """
    cos, sin = _turns(rows, columns, x.shape[-1], x.device)
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)


@functools.lru_cache(maxsize=32)
def _turns(rows: int, columns: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (tokens, width / 2) each."""
    with torch.inference_mode(False):  # autograd must be able to keep them
        theta = 10000 ** (-4 * torch.arange(width // 4, dtype=torch.float32, device="cpu") / width)
        row = torch.arange(rows, device="cpu")[:, None].expand(rows, columns).flatten()
        column = torch.arange(columns, device="cpu")[None].expand(rows, columns).flatten()
        angles = torch.stack([column[:, None] * theta, row[:, None] * theta], dim=-1).flatten(1)
        return angles.cos().to(device), angles.sin().to(device)
