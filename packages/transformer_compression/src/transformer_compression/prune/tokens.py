"""Token pruning by attention: EViT drops what the class token looks at least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from transformer_compression.prune.tome import attend, check_vit, replace_blocks

EVIT_BLOCKS = (3, 6, 9)  # of twelve


def kept_tokens(probabilities: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """The most attended tokens besides the class token.

    Args:
        probabilities: (B, heads, N, N), the softmax of attention.
        keep: share of the N - 1 tokens; ``ceil(keep (N - 1))`` stay.

    Returns:
        places among the N - 1 tokens (B, kept), most attended first, and the attention of all
        (B, N - 1): the class token's row, averaged over the heads.
    """
    attention = probabilities[:, :, 0, 1:].mean(1)
    count = math.ceil(keep * attention.shape[1])
    return attention.topk(count, dim=1).indices, attention


def select_tokens(x: Tensor, probabilities: Tensor, keep: float, *, fuse: bool = True) -> Tensor:
    """Class token, kept tokens in falling order, and (fuse) the rest in one token.

    Args:
        x: (B, N, C), class token first.
        probabilities: (B, heads, N, N) of the attention just before.
        keep: share of the N - 1 tokens that stay.
        fuse: append ``sum a_i x_i`` of the others, not normalised.

    Source: Liang et al., EViT, arXiv 2202.07800; sheet 4.8.
    """
    index, attention = kept_tokens(probabilities, keep)
    width = x.shape[-1]
    others = x[:, 1:]
    stays = others.gather(1, index[..., None].expand(-1, -1, width))
    if not fuse or index.shape[1] == others.shape[1]:
        return torch.cat([x[:, :1], stays], 1)
    weights = attention.scatter(1, index, 0.0)
    fused = (weights[..., None] * others).sum(1, keepdim=True)
    return torch.cat([x[:, :1], stays, fused], 1)


def evit_block(
    block: Any, x: Tensor, *, keep: float = 1.0, fuse: bool = True
) -> tuple[Tensor, Tensor]:
    """A timm block that drops tokens after its attention and before its MLP.

    Returns:
        tokens (B, N', C), and the places of those that were kept (B, kept).
    """
    made, _, probabilities = attend(block.attn, block.norm1(x))
    x = x + block.ls1(made)
    index, _ = kept_tokens(probabilities, keep)
    if keep < 1:
        x = select_tokens(x, probabilities, keep, fuse=fuse)
    return x + block.ls2(block.mlp(block.norm2(x))), index


def apply_evit(
    model: Any,
    keep: float = 0.7,
    *,
    blocks: Sequence[int] | None = None,
    fuse: bool = True,
) -> Any:
    """Make a timm vision transformer drop tokens, in place; weights stay as they are.

    Args:
        model: ViT or DeiT of timm with a class token.
        keep: share of the tokens that stay, each time.
        blocks: where; default at a quarter, a half and three quarters of the depth (3, 6, 9 of 12).
        fuse: keep the sum of what is dropped as one token.

    Returns:
        the model.

    Raises:
        ValueError: another architecture, no class token, or keep outside (0, 1].
    """
    check_vit(model)
    if getattr(model, "cls_token", None) is None:
        raise ValueError("EViT ranks tokens by the class token's attention; the model has none")
    if not 0 < keep <= 1:
        raise ValueError(f"keep is {keep}, expected 0 < keep <= 1")
    depth = len(model.blocks)
    places = [depth * i // 4 for i in (1, 2, 3)] if blocks is None else list(blocks)

    def forward(block: Any, index: int, x: Tensor) -> Tensor:
        return evit_block(block, x, keep=keep if index in places else 1.0, fuse=fuse)[0]

    replace_blocks(model, forward)
    return model


def evit_macs(
    *,
    width: int,
    depth: int,
    tokens: int,
    patch_inputs: int,
    classes: int,
    keep: float = 1.0,
    blocks: Sequence[int] = EVIT_BLOCKS,
    mlp_ratio: float = 4,
    fuse: bool = True,
) -> int:
    """Multiply-accumulates of a vision transformer with EViT (sheet 4.8's table)."""
    total = (tokens - 1) * patch_inputs * width + width * classes
    for index in range(depth):
        total += 4 * tokens * width**2 + 2 * tokens**2 * width
        if index in blocks and keep < 1:
            left = math.ceil(keep * (tokens - 1))
            tokens = 1 + left + (fuse and left < tokens - 1)
        total += round(2 * mlp_ratio * tokens * width**2)
    return total
