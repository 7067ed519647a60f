"""Multiply-accumulates as the paper counts them, and by formula.

Source: u_dit sheet 3.9, 3.12.
"""

from __future__ import annotations

import torch
from torch import nn

from papers_shared.complexity import count_macs
from papers_shared.diffusion.udit_unet import LEVELS, WIDTHS
from u_dit.dit import DiTConfig
from u_dit.model import Config, build, fuse


def on_meta(config: Config | DiTConfig, *, fused: bool = False) -> nn.Module:
    """The network without memory for its weights."""
    with torch.device("meta"):
        model = build(config)
        return fuse(model) if fused else model


def macs(model: nn.Module, in_channels: int, side: int) -> int:
    """Of convolutions, linear layers and matrix products for one latent, by torch's counter."""
    step = torch.zeros(1, dtype=torch.long, device="meta")
    given = [torch.empty(1, in_channels, side, side, device="meta"), step, step]
    return count_macs(model, given, rule="flop_counter").total // 2


def elementwise(config: Config | DiTConfig, side: int) -> int:
    """Element-wise products, which the paper's counter adds one multiply-accumulate each for.

    Modulations, gates, the scaling of logits and rotations. The 1,692 products of single numbers
    that the counter finds in S, B and L at any size are 768 in the three sinusoids and 21 in each
    attention; for other networks that split is assumed (it is below 1e-5 of any total).
    """
    if isinstance(config, DiTConfig):
        tokens = (side // config.patch_size) ** 2
        width = tokens * config.hidden_size
        return config.depth * (4 * width + config.num_heads * tokens**2) + width
    total = 2 * config.hidden_size * side**2 + 768
    for stage, (level, widths) in enumerate(zip(LEVELS, WIDTHS, strict=True)):
        pixels, width = (side >> level) ** 2, widths * config.hidden_size
        logits = config.num_heads * pixels**2 // config.factor(stage) ** 2
        rotated = pixels * width if config.posemb_type == "rope2d" else 0
        total += 2 * config.depth[stage] * (4 * pixels * width + logits + rotated + 21)
    return total


def paper_macs(config: Config | DiTConfig, side: int) -> int:
    """The paper's "FLOPs": fused, a batch of one, element-wise products included."""
    counted = macs(on_meta(config, fused=True), config.in_channels, side)
    return counted + elementwise(config, side)
