"""Position biases of the grid attention: Swin's table, Swin-V2's continuous one.

Source: ipt_v2 sheet 3.2, step 4.
"""

from __future__ import annotations

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
