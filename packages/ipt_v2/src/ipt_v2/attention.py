"""The attentions: FCSA in windows, GGSA on grids, and Restormer's MDTA, FCSA's ablation partner.

Parameters have the names, shapes and order of the authors' code.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipt_v2.positions import relative_coords_table, relative_position_index
from papers_shared.kernels import window_channel_attention
from papers_shared.networks.grid_attention import GridAttention

Posemb = Literal["relbias", "relbias2", "rope2d"]


class ChannelAttentionParameters(nn.Module):
    """What one branch of FCSA learns beside the projections, all ones at the start.

    Shapes: ``temperature`` (h, 1, 1), ``spatial_affine`` (h, 1, w^2), ``mask`` (1, h, w, w).
    Without a second branch to blend with (``scored`` False) the mask is no parameter.
    """

    def __init__(self, num_heads: int, window_size: int, *, scored: bool = True) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.spatial_affine = nn.Parameter(torch.ones(num_heads, 1, window_size**2))
        mask = torch.ones(1, num_heads, window_size, window_size)
        if scored:
            self.mask = nn.Parameter(mask)
        else:
            self.register_buffer("mask", mask, persistent=False)

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three, as ``window_channel_attention`` takes them."""
        return self.temperature, self.spatial_affine, self.mask


class FCSA(nn.Module):
    """Focal context self-attention: channels attend to channels inside windows.

    Two sets of windows, the second shifted by half a window with parameters of its own; the results
    are blended by learned scores. Linear in the number of pixels.

    Args:
        dim: channels C, a multiple of ``num_heads``.
        window_size: side w of a window, even; height and width have to be multiples of it. It
            cannot change after training: ``spatial_affine`` and ``mask`` have one entry a position.
        num_heads: heads.
        bias: of the three convolutions.
        shifted: False leaves the second set out (ablation).

    Source: ipt_v2 sheet 3.1.
    """

    def __init__(
        self,
        dim: int,
        window_size: int,
        num_heads: int,
        *,
        bias: bool = False,
        shifted: bool = True,
    ) -> None:
        super().__init__()
        if window_size < 2 or window_size % 2:
            raise ValueError(f"window_size={window_size}: expected an even number from 2 up")
        _check_heads(dim, num_heads)
        self.window_size, self.num_heads = window_size, num_heads
        self.cbsa_base = ChannelAttentionParameters(num_heads, window_size, scored=shifted)
        if shifted:
            self.cbsa_slice_base = ChannelAttentionParameters(num_heads, window_size)
        self.shifted = shifted
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim, bias=bias)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape.

        Raises:
            ValueError: H or W is no multiple of ``window_size``.
        """
        y = window_channel_attention(
            self.qkv_dwconv(self.qkv(x)),
            self.cbsa_base(),
            self.cbsa_slice_base() if self.shifted else None,
        )
        return self.project_out(y)

    @torch.no_grad()
    def smallest_score(self) -> float:
        """The smallest |sum of both scores|, which the blend divides by; 2 at the start.

        Infinite without a second branch, and on the meta device, where there are no values.
        """
        if not self.shifted or self.cbsa_base.mask.is_meta:
            return math.inf
        half = self.window_size // 2
        moved = self.cbsa_slice_base.mask.roll((half, half), (2, 3))
        return (self.cbsa_base.mask + moved).abs().min().item()


class MDTA(nn.Module):
    """Restormer's channel attention over the whole map, any size.

    Source: Zamir et al., Restormer, CVPR 2022; ipt_v2 sheet 3.1, last paragraph but two.
    """

    def __init__(self, dim: int, num_heads: int, *, bias: bool = False) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim, bias=bias)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        batch, channels, height, width = x.shape
        qkv = self.qkv_dwconv(self.qkv(x))
        shape = (batch, 3, self.num_heads, channels // self.num_heads, height * width)
        q, k, v = qkv.reshape(shape).unbind(1)
        logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT
        y = (logits * self.temperature).softmax(dim=-1) @ v
        return self.project_out(y.reshape(batch, channels, height, width))


class GGSA(GridAttention):
    """Global grid self-attention: pixels at one offset in every cell attend to each other.

    With cells of p x p pixels there are p^2 groups of (H / p) (W / p) tokens, so each pixel sees
    the whole map at a stride of p.

    Args:
        dim: channels C, a multiple of ``num_heads``.
        patch_size: side p of a cell; height and width have to be multiples of it.
        num_heads: heads.
        input_size: side of the map; only the two biases need it, and fix the size by it.
        bias: of ``to_qkv`` (``to_out`` always has one).
        posemb_type: None, 'relbias' (Swin), 'relbias2' (Swin-V2) or 'rope2d'.
        attn_type: None: dot product; 'v2': cosine with a learned scale.
        before_attn, after_attn: None, or 'dwconvK' or 'convK', a convolution of side K.
        aug_shortcut: these convolutions are added to their input.

    Attributes:
        tokens_per_side: None: cells of ``patch_size``. A number: the smallest cells that divide the
            map into at most so many rows and columns of tokens, so that the cost stays linear on
            larger maps ('grid'); may be changed at any time, needs no position bias.

    Source: ipt_v2 sheet 3.2.
    """

    def __init__(
        self,
        dim: int,
        patch_size: int,
        num_heads: int,
        *,
        input_size: int | None = None,
        bias: bool = False,
        posemb_type: Posemb | None = None,
        attn_type: Literal["v2"] | None = None,
        before_attn: str | None = None,
        after_attn: str | None = None,
        aug_shortcut: bool = False,
    ) -> None:
        if posemb_type not in (None, "relbias", "relbias2", "rope2d"):
            raise ValueError(
                f"posemb_type={posemb_type!r}: expected None, 'relbias', 'relbias2' or 'rope2d'"
            )
        super().__init__(
            dim, num_heads, bias=bias, rotary=posemb_type == "rope2d", attn_type=attn_type
        )
        self.patch_size, self.posemb_type = patch_size, posemb_type
        self.tokens_per_side: int | None = None
        if posemb_type in ("relbias", "relbias2"):
            self.side = self._fixed_side(input_size)
            if posemb_type == "relbias":
                table = torch.empty((2 * self.side - 1) ** 2, num_heads)
                self.relative_position_bias_table = nn.Parameter(
                    nn.init.trunc_normal_(table, std=0.02)
                )
            else:
                self.register_buffer("relative_coords_table", relative_coords_table(self.side))
            index = relative_position_index(self.side)
            self.register_buffer("relative_position_index", index)
        if posemb_type == "relbias2":
            self.cpb_mlp = nn.Sequential(
                nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, num_heads, bias=False)
            )
        self.before_attn = _augmentation(before_attn, dim, shortcut=aug_shortcut)
        self.after_attn = _augmentation(after_attn, dim, shortcut=aug_shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape.

        Raises:
            ValueError: H or W is no multiple of the cell, or not what a position bias was made for.
        """
        x = self.before_attn(x)
        a, b = self._cell(*x.shape[2:])
        y = self.over_cells(x, a, b, bias=self._bias(x.shape[2] // a, x.shape[3] // b))
        return self.to_out(self.after_attn(y))

    def _bias(self, rows: int, columns: int) -> Tensor | None:
        if self.posemb_type not in ("relbias", "relbias2"):
            return None
        if (rows, columns) != (self.side, self.side):
            raise ValueError(
                f"a grid of {rows}x{columns} cells: {self.posemb_type} was made for "
                f"{self.side}x{self.side}; give maps of the side input_size said"
            )
        if self.posemb_type == "relbias":
            table = self.relative_position_bias_table
        else:
            table = (
                16 * self.cpb_mlp(self.get_buffer("relative_coords_table")).flatten(0, 2).sigmoid()
            )
        tokens = rows * columns
        index = self.get_buffer("relative_position_index").flatten()
        return table[index].T.unflatten(1, (tokens, tokens))

    def _fixed_side(self, input_size: int | None) -> int:
        if input_size is None or input_size % self.patch_size:
            raise ValueError(
                f"posemb_type={self.posemb_type!r} needs the map's side: input_size={input_size} "
                f"is no multiple of patch_size={self.patch_size}"
            )
        return input_size // self.patch_size

    def _cell(self, height: int, width: int) -> tuple[int, int]:
        if self.tokens_per_side is not None:
            return _cell_side(height, self.tokens_per_side), _cell_side(width, self.tokens_per_side)
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"a map of {height}x{width} does not divide into cells of "
                f"{self.patch_size}x{self.patch_size}; pad it"
            )
        return self.patch_size, self.patch_size


class Shortcut(nn.Module):
    """``x + layer(x)``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that the layer keeps."""
        return x + self.layer(x)


def _cell_side(side: int, tokens: int) -> int:
    """The smallest divisor of ``side`` that leaves at most ``tokens`` cells."""
    return next(cell for cell in range(1, side + 1) if side % cell == 0 and side // cell <= tokens)


def _augmentation(kind: str | None, dim: int, *, shortcut: bool) -> nn.Module:
    """The convolution that 'dwconvK' or 'convK' names; it always has a bias."""
    if kind is None:
        return nn.Identity()
    name, side = kind[:-1], kind[-1]
    if name not in ("dwconv", "conv") or side not in "13579":
        raise ValueError(f"a convolution {kind!r}: expected None, 'dwconvK' or 'convK', K odd")
    groups = dim if name == "dwconv" else 1
    layer = nn.Conv2d(dim, dim, int(side), padding=int(side) // 2, groups=groups)
    return Shortcut(layer) if shortcut else layer


def _check_heads(dim: int, num_heads: int) -> None:
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"num_heads={num_heads}: expected a divisor of the {dim} channels")
