"""Attention with token downsampling, and the other attentions of the paper's toy experiment."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from papers_shared.kernels.depthwise_conv2d import depthwise_conv2d
from papers_shared.networks.grid_attention import GridAttention

NO_DOWNSAMPLER = "none"


class Downsampler(nn.Module):
    """A convolution that keeps the size, added to its input or in its place.

    Args:
        dim: channels.
        kind: 'dwconvK' (depthwise) or 'convK' (ordinary), K odd.
        shortcut: add the input.

    Source: u_dit sheet 3.3, step 1; the paper's "DW conv in parallel with a shortcut".
    """

    def __init__(self, dim: int, kind: str, *, shortcut: bool) -> None:
        super().__init__()
        name, side = kind[:-1], kind[-1:]
        if name not in ("dwconv", "conv") or side not in tuple("13579"):
            raise ValueError(
                f"downsampler={kind!r}: expected 'dwconvK' or 'convK' with K odd, or 'none'"
            )
        groups = dim if name == "dwconv" else 1
        self.shortcut = shortcut
        self.layer = nn.Conv2d(dim, dim, int(side), padding=int(side) // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if self.layer.groups > 1:
            y = depthwise_conv2d(x, self.layer.weight, self.layer.bias)
        else:
            y = self.layer(x)
        return x + y if self.shortcut else y


@torch.no_grad()
def fold_shortcuts(network: nn.Module) -> None:
    """Put every depthwise downsampler's shortcut into its kernel, as a 1 in the centre.

    Source: u_dit sheet 3.6.
    """
    for module in network.modules():
        if isinstance(module, Downsampler) and module.shortcut and module.layer.groups > 1:
            weight = module.layer.weight.detach().clone()
            weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2] += 1
            module.layer.weight = nn.Parameter(weight, requires_grad=False)
            module.shortcut = False


class DownsampledAttention(GridAttention):
    """Queries, keys and values all come from f^2 maps of 1/f the side: nothing is thrown away.

    A convolution, then every f-th pixel of every f-th row makes a map, f^2 of them; attention runs
    inside each, at 1/f^2 of the cost of full attention; the results go back to their places.

    Args:
        dim: channels, a multiple of ``num_heads``.
        num_heads: heads.
        down_factor: f; 1 is full attention.
        downsampler: 'dwconvK', 'convK' or 'none' (pixels are only rearranged).
        down_shortcut: the convolution is added to its input.
        attn_type: None: dot product; 'v2': cosine with a learned scale.
        posemb_type: None or 'rope2d'.
        bias: of ``to_qkv``.
        kv: key-value downsampling, the paper's counterexample: all pixels ask, every f-th pixel of
            every f-th row answers. The paper does not say how; this is our reading.

    Source: u_dit sheet 3.3; 3.12 for ``kv``, reading (c).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        down_factor: int,
        downsampler: str,
        down_shortcut: bool = False,
        attn_type: Literal["v2"] | None = None,
        posemb_type: Literal["rope2d"] | None = None,
        bias: bool = True,
        kv: bool = False,
    ) -> None:
        if posemb_type not in (None, "rope2d"):
            raise ValueError(f"posemb_type={posemb_type!r}: expected None or 'rope2d'")
        if kv and posemb_type is not None:
            raise ValueError("kv=True has no positions (posemb_type has to be None)")
        if down_factor < 1:
            raise ValueError(f"down_factor={down_factor}: expected 1 or more")
        rotary = posemb_type == "rope2d"
        super().__init__(dim, num_heads, bias=bias, rotary=rotary, attn_type=attn_type)
        self.down_factor, self.kv = down_factor, kv
        self.downsampler: nn.Module = nn.Identity()
        if downsampler != NO_DOWNSAMPLER:
            self.downsampler = Downsampler(dim, downsampler, shortcut=bool(down_shortcut))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape.

        Raises:
            ValueError: H or W is no multiple of ``down_factor``.
        """
        f = self.down_factor
        if x.shape[2] % f or x.shape[3] % f:
            raise ValueError(
                f"a map of {x.shape[2]}x{x.shape[3]}: height and width have to be multiples of "
                f"down_factor={f}"
            )
        y = self.downsampler(x)
        return self.to_out(self._fewer_keys(y) if self.kv else self.over_cells(y, f, f))

    def _fewer_keys(self, x: Tensor) -> Tensor:
        f = self.down_factor
        q, k, v = self.heads(x.flatten(2).mT)

        def thin(tokens: Tensor) -> Tensor:
            return tokens.unflatten(2, x.shape[2:])[:, :, ::f, ::f].flatten(2, 3)

        return self.attend(q, thin(k), thin(v)).mT.reshape(x.shape)
