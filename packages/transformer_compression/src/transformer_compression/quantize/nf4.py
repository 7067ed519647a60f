"""NF4: four-bit codes for 16 quantiles of the normal distribution, one scale every 64 weights.

Source: QLoRA, Dettmers et al., arXiv 2305.14314; sheet 4.10.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from papers_shared.language_models import block_linears, block_names, find_blocks
from transformer_compression.core import Data, Outcome

LEVELS = (
    *(-1, -0.69619, -0.52507, -0.39492, -0.28444, -0.18477, -0.09105, 0),
    *(0.07958, 0.16093, 0.24611, 0.33792, 0.44071, 0.56262, 0.72296, 1),
)
DOUBLE_GROUP = 256


def nf4(weight: Tensor, *, block: int = 64, double: bool = True) -> tuple[Tensor, Tensor]:
    """Quantize and dequantize.

    Args:
        weight: any shape; blocks run over the flattened weights, the last may be shorter.
        block: weights a scale (their largest magnitude).
        double: scales minus their mean as signed 8-bit codes, 256 a step.

    Returns:
        the weights moved to their levels, and the codes (uint8), both in the weight's shape.
    """
    flat = nn.functional.pad(weight.detach().float().flatten(), (0, -weight.numel() % block))
    blocks = flat.view(-1, block)
    scale = blocks.abs().amax(1)
    if double:
        scale = _double(scale)
    levels = torch.tensor(LEVELS, device=weight.device)
    between = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(blocks / scale.clamp(min=1e-12)[:, None], between)
    near = (levels[codes] * scale[:, None]).flatten()[: weight.numel()]
    stored = codes.to(torch.uint8).flatten()[: weight.numel()]
    return near.view_as(weight).to(weight.dtype), stored.view_as(weight)


def _double(scale: Tensor) -> Tensor:
    mean = scale.mean()
    padded = nn.functional.pad(scale - mean, (0, -len(scale) % DOUBLE_GROUP)).view(-1, DOUBLE_GROUP)
    step = (padded.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
    return (torch.round(padded / step) * step).flatten()[: len(scale)] + mean


def nf4_bytes(count: int, *, block: int = 64, double: bool = True) -> float:
    """Bytes of ``count`` weights: 4 bits each, a scale a block (8 bits and a share of a float)."""
    blocks = -(-count // block)
    scales = blocks + 4 * (-(-blocks // DOUBLE_GROUP) + 1) if double else 4 * blocks
    return count / 2 + scales


@torch.no_grad()
def nf4_language(model: nn.Module, data: Data, *, block: int, double: bool) -> Outcome:
    """Every linear layer of the blocks in NF4; needs no data.

    Args:
        model: a causal language model, changed in place.
        data: not looked at.
        block, double: see ``nf4``.
    """
    sizes = {}
    for prefix, layer in zip(block_names(model), find_blocks(model), strict=True):
        for name, linear in block_linears(layer).items():
            near, _ = nf4(linear.weight, block=block, double=double)
            linear.weight.copy_(near)
            count = linear.weight.numel()
            sizes[f"{prefix}.{name}.weight"] = nf4_bytes(count, block=block, double=double)
    note = "no kernel for NF4 runs here: weights are floating point in this process"
    return Outcome(model, sizes, notes=(note,))
