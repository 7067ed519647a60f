"""The paper's claims that hold for any weights, as numbers: what sees what, what it costs.

Source: ipt_v2 sheet 7.5 to 7.7.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ipt_v2.attention import FCSA, GGSA
from ipt_v2.feedforward import merge
from ipt_v2.model import Config, build
from papers_shared.complexity import count_macs

Kind = Literal["fcsa", "ggsa"]
WINDOW = CELL = 8
DIM, HEADS = 16, 2


def attention(kind: Kind) -> FCSA | GGSA:
    """One attention with windows, or cells, of 8 x 8 pixels."""
    return FCSA(DIM, WINDOW, HEADS) if kind == "fcsa" else GGSA(DIM, CELL, HEADS)


def reach(layer: nn.Module, *, side: int, pixel: tuple[int, int], seed: int) -> Tensor:
    """Which pixels of the input one pixel of the output depends on, found by its gradient.

    Args:
        layer: (1, DIM, side, side) to the same shape.
        side: of the map.
        pixel: row and column of the output's pixel.
        seed: of the input.

    Returns:
        bool (side, side).
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, DIM, side, side, generator=generator, dtype=torch.float64).requires_grad_()
    row, column = pixel
    (gradient,) = torch.autograd.grad(layer.double()(x)[0, :, row, column].square().sum(), x)
    return gradient[0].abs().sum(0) > 0


def counted_and_formula(kind: Kind, side: int) -> tuple[int, int]:
    """Multiply-accumulates on a square map: counted operator by operator, and by the formula.

    FCSA: N (4 C^2 + 27 C) + 2 C (C/h) (N + N_cut), with N pixels of which N_cut are in shifted
    windows. GGSA: 4 N C^2 + 2 N n C, with n tokens a group.
    """
    shape = (1, DIM, side, side)
    counted = count_macs(attention(kind), shape, rule="flop_counter").total // 2
    pixels, cut = side**2, (side - WINDOW) ** 2
    if kind == "fcsa":
        products = 2 * DIM * (DIM // HEADS) * (pixels + cut)
        return counted, pixels * (4 * DIM**2 + 27 * DIM) + products
    tokens = (side // CELL) ** 2
    return counted, 4 * pixels * DIM**2 + 2 * pixels * tokens * DIM


def merging_gap(config: Config, *, seed: int, side: int = 64) -> float:
    """Largest difference between merged and unmerged results, relative to the largest value."""
    torch.manual_seed(seed)
    network = build(config).eval()
    x = torch.rand(1, config.in_channels, side, side)
    with torch.inference_mode():
        wanted = network(x)
        return ((merge(network)(x) - wanted).abs().max() / wanted.abs().max()).item()
