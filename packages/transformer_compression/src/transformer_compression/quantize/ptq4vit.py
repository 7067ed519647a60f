"""PTQ4ViT's quantizers and their search.

q = 2^(bits - 1) throughout. Source: Yuan et al., arXiv 2111.12293; sheet 4.11 (their code).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

GELU_MINIMUM = 0.16997124  # of -GELU; the negative side of a GELU's output ends there
ALPHA, BETA, CANDIDATES, ROUNDS = 0.01, 1.2, 100, 3
SPLIT_POWERS = 20
Form = Literal["code", "paper"]


def uniform(x: Tensor, interval: Tensor | float, bits: int) -> Tensor:
    """``clamp(round(x / interval), -q, q - 1) interval``."""
    q = 2 ** (bits - 1)
    return (x / interval).round().clamp(-q, q - 1) * interval


def twin_gelu(x: Tensor, interval: Tensor | float, bits: int) -> Tensor:
    """After GELU: positive values on one uniform grid, negative ones on a fixed finer one."""
    q = 2 ** (bits - 1)
    negative = GELU_MINIMUM / q
    above = (x / interval).round().clamp(0, q - 1) * interval
    return above + (x / negative).round().clamp(-q, 0) * negative


def twin_softmax(p: Tensor, split: Tensor | float, bits: int, form: Form = "code") -> Tensor:
    """After softmax: values up to ``split`` on a finer grid than those above.

    Args:
        p: probabilities.
        split: between the two ranges.
        bits: bits a code.
        form: ``code`` adds the two terms, so every p >= split is raised by split, as the released
            code computes; ``paper`` takes one or the other.
    """
    q = 2 ** (bits - 1)
    fine = (p.clamp(max=split) * (q - 1) / split).round() * split / (q - 1)
    if form == "code":
        return (p.clamp(min=split) * (q - 1)).round() / (q - 1) + fine
    return torch.where(p >= split, (p * (q - 1)).round() / (q - 1), fine)


def candidates(alpha: float = ALPHA, beta: float = BETA, count: int = CANDIDATES) -> list[float]:
    """Factors of the first interval that a search tries."""
    return [alpha + i * (beta - alpha) / count for i in range(count)]


def first_interval(x: Tensor, bits: int) -> Tensor:
    """``max|x| / (q - 1/2)``."""
    return x.abs().max() / (2 ** (bits - 1) - 0.5)


@dataclass
class LinearIntervals:
    """Intervals of a linear layer: one a chunk of rows, one of the inputs."""

    weight: Tensor
    inputs: Tensor


def search_linear(
    x: Tensor,
    weight: Tensor,
    gradient: Tensor,
    *,
    bits: int,
    row_chunks: int = 1,
    post_gelu: bool = False,
    factors: list[float] | None = None,
    rounds: int = ROUNDS,
) -> LinearIntervals:
    """Intervals of least ``mean (g dO)^2``: weights first, then inputs, a few rounds.

    Args:
        x: (B, T, inputs), float inputs.
        weight: (rows, inputs).
        gradient: (B, T, rows), of the loss at the layer's float output; all zero: plain squared
            error.
        bits: of both.
        row_chunks: rows are cut into so many parts (3 for q, k, v).
        post_gelu: the inputs come from a GELU.
        factors: of the first interval; ties go to the smallest.
        rounds: how often both are searched.
    """
    factors = factors or candidates()
    x, gradient = x.flatten(0, -2), gradient.flatten(0, -2)
    if not gradient.any():
        gradient = torch.ones_like(gradient)
    target = F.linear(x, weight)  # the bias is on both sides of the difference
    on_input = twin_gelu if post_gelu else uniform
    start = first_interval(x.clamp(min=0) if post_gelu else x, bits)
    chunks = weight.chunk(row_chunks)
    starts = torch.stack([first_interval(chunk, bits) for chunk in chunks])
    found = LinearIntervals(starts.clone(), start.clone())

    def quantized(intervals: Tensor) -> Tensor:
        parts = zip(chunks, intervals, strict=True)
        return torch.cat([uniform(chunk, interval, bits) for chunk, interval in parts])

    for _ in range(rounds):
        near = on_input(x, found.inputs, bits)
        errors = torch.stack(
            [
                torch.stack(
                    [
                        part.square().mean()
                        for part in (
                            gradient * (F.linear(near, quantized(starts * f)) - target)
                        ).chunk(row_chunks, 1)
                    ]
                )
                for f in factors
            ]
        )
        found.weight = starts * torch.tensor(factors).to(starts)[errors.argmin(0)]
        near = quantized(found.weight)
        sums = [
            (gradient * (F.linear(on_input(x, start * f, bits), near) - target)).square().mean()
            for f in factors
        ]
        found.inputs = start * factors[int(torch.stack(sums).argmin())]
    return found


def _per_head(error: Tensor) -> Tensor:
    """Mean over everything but heads: (B, H, T, D) -> (H,)."""
    return error.square().mean((0, 2, 3))


def search_softmax_matmul(
    p: Tensor,
    v: Tensor,
    gradient: Tensor,
    *,
    bits: int,
    form: Form = "code",
    factors: list[float] | None = None,
    powers: int = SPLIT_POWERS,
) -> tuple[Tensor, Tensor]:
    """The split of the probabilities, and an interval of the values for each head.

    Args:
        p: (B, H, T, T).
        v: (B, H, T, D).
        gradient: (B, H, T, D), at the float product; all zero: plain squared error.
        bits: of both.
        form: see ``twin_softmax``.
        factors: of the first interval.
        powers: splits are 2^-i for i below this.

    Returns:
        split (scalar) and intervals (H,).
    """
    if not gradient.any():
        gradient = torch.ones_like(gradient)
    target = p @ v
    splits = [2.0**-i for i in range(powers)]
    errors = [
        (gradient * (twin_softmax(p, s, bits, form) @ v - target)).square().mean() for s in splits
    ]
    split = torch.tensor(splits[int(torch.stack(errors).argmin())], device=p.device)
    near = twin_softmax(p, split, bits, form)
    # One round: the split is searched with unquantized values, so nothing would change.
    intervals = search_heads(v, lambda v: near @ v, target, gradient, bits=bits, factors=factors)
    return split, intervals


def search_heads(
    x: Tensor,
    product: Callable[[Tensor], Tensor],
    target: Tensor,
    gradient: Tensor,
    *,
    bits: int,
    factors: list[float] | None = None,
) -> Tensor:
    """An interval a head for one operand of a product.

    Args:
        x: (B, H, T, D), the operand.
        product: of the quantized operand with the other one.
        target, gradient: the float product and the loss gradient there.
        bits: bits a code.
        factors: of each head's first interval.

    Returns:
        (H,).
    """
    factors = factors or candidates()
    starts = x.abs().amax((0, 2, 3)) / (2 ** (bits - 1) - 0.5)
    errors = torch.stack(
        [
            _per_head(gradient * (product(uniform(x, _heads(starts * f), bits)) - target))
            for f in factors
        ]
    )
    return starts * torch.tensor(factors).to(starts)[errors.argmin(0)]


def _heads(values: Tensor) -> Tensor:
    return values[:, None, None]


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-2, -1)


def search_query_key(
    q: Tensor, k: Tensor, gradient: Tensor, *, bits: int, rounds: int = ROUNDS
) -> tuple[Tensor, Tensor]:
    """An interval a head for queries and for keys (B, H, T, D); gradient (B, H, T, T)."""
    if not gradient.any():
        gradient = torch.ones_like(gradient)
    target = q @ k.transpose(-2, -1)
    other = k.abs().amax((0, 2, 3)) / (2 ** (bits - 1) - 0.5)
    for _ in range(rounds):
        near_k = uniform(k, _heads(other), bits)
        mine = search_heads(q, partial(_scores, k=near_k), target, gradient, bits=bits)
        near_q = uniform(q, _heads(mine), bits)
        other = search_heads(k, partial(_scores, near_q), target, gradient, bits=bits)
    return mine, other
