"""Attention among pixels at one offset in every cell: U-DiT's token downsampling, IPT-V2's GGSA.

What stands before it, after it and in place of positions is the papers' own; the parameters here
have the authors' names, shapes and order.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers_shared.networks.rotary import rotate

AttentionType = Literal["v2"]
LARGEST_LOGIT_SCALE = 4.6052  # of the natural logarithm, about ln 100, as the authors' code has it


def split_cells(x: Tensor, a: int, b: int) -> Tensor:
    """(B, C, H, W) to (B, a b, (H / a) (W / b), C): group dy * b + dx has the pixels
    (i a + dy, j b + dx), row by row."""
    batch, channels, height, width = x.shape
    cells = x.reshape(batch, channels, height // a, a, width // b, b)
    return cells.permute(0, 3, 5, 2, 4, 1).reshape(batch, a * b, -1, channels)


def join_cells(groups: Tensor, a: int, b: int, *, rows: int) -> Tensor:
    """The inverse of ``split_cells``, for maps of ``rows`` rows of cells."""
    batch, _, tokens, channels = groups.shape
    cells = groups.reshape(batch, a, b, rows, tokens // rows, channels)
    return cells.permute(0, 5, 3, 1, 4, 2).reshape(batch, channels, rows * a, -1)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None, scale: float | None
) -> Tensor:
    reduced = torch.is_autocast_enabled("cpu") or v.dtype == torch.bfloat16
    if q.device.type == "cpu" and reduced and torch.is_grad_enabled():
        # Its backward in bfloat16 takes four times the time of float32 on a CPU.
        with torch.autocast("cpu", enabled=False):
            bias = None if bias is None else bias.float()
            y = F.scaled_dot_product_attention(
                q.float(), k.float(), v.float(), attn_mask=bias, scale=scale
            )
            return y.to(v.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


class GridAttention(nn.Module):
    """The projections, and attention inside the groups of a map.

    Args:
        dim: channels C, a multiple of ``num_heads``.
        num_heads: heads.
        bias: of ``to_qkv`` (``to_out`` always has one).
        rotary: queries and keys get their place in the grid by rotation.
        attn_type: None: dot product; 'v2': cosine with a learned scale.

    Source: u_dit sheet 3.3, ipt_v2 sheet 3.2.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        bias: bool = True,
        rotary: bool = False,
        attn_type: AttentionType | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads}: expected a divisor of the {dim} channels")
        if attn_type not in (None, "v2"):
            raise ValueError(f"attn_type={attn_type!r}: expected None or 'v2'")
        if rotary and dim // num_heads % 4:
            raise ValueError(f"rope2d needs heads of a multiple of 4 channels: {dim}/{num_heads}")
        self.num_heads, self.rotary, self.attn_type = num_heads, rotary, attn_type
        if attn_type == "v2":
            self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10)))
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.to_out = nn.Conv2d(dim, dim, 1)

    def over_cells(self, x: Tensor, a: int, b: int, *, bias: Tensor | None = None) -> Tensor:
        """Each of the a b groups of a map by itself; (B, C, H, W) to the same shape.

        Args:
            x: height a multiple of a, width of b.
            a, b: sides of a cell.
            bias: added to the logits, (h, tokens, tokens).
        """
        rows, columns = x.shape[2] // a, x.shape[3] // b
        groups = split_cells(x, a, b)
        q, k, v = self.heads(groups.flatten(0, 1))
        if self.rotary:
            q, k = rotate(q, rows, columns), rotate(k, rows, columns)
        y = self.attend(q, k, v, bias=bias)
        return join_cells(y.unflatten(0, groups.shape[:2]), a, b, rows=rows)

    def heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(G, tokens, C) to queries, keys and values (G, h, tokens, C / h)."""
        qkv = self.to_qkv(tokens).unflatten(2, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None) -> Tensor:
        """(G, h, queries, C / h) and twice (G, h, keys, C / h) to (G, queries, C)."""
        bias = None if bias is None else bias.to(q.dtype)
        scale = None
        if self.attn_type == "v2":
            factor = self.logit_scale.clamp(max=LARGEST_LOGIT_SCALE).exp()
            # Norms in half precision are a known source of NaN.
            q = (F.normalize(q.float(), dim=-1) * factor).to(v.dtype)
            k = F.normalize(k.float(), dim=-1).to(v.dtype)
            scale = 1.0
        y = _attention(q, k, v, bias=bias, scale=scale)
        return y.transpose(1, 2).flatten(2)
