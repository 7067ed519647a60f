"""GPTQ's solver, and the pieces that SparseGPT shares with it.

Source: Frantar et al., GPTQ, arXiv 2210.17323, as its authors' code computes it (CBQ sheet 4.7).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from papers_shared.quantization.grids import Grid, GridRule, QuantizedWeight, in_groups


class Hessian:
    """``H = (2 / N) sum x x^T`` over N sequences, as a running mean.

    Args:
        features: inputs of the linear layer.
        device: where it is kept.
    """

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        self.value = torch.zeros(features, features, device=device)
        self.sequences = 0
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        """Take in inputs (B, T, features) of B sequences, or (T, features) of one.

        Raises:
            ValueError: other features.
        """
        if x.shape[-1] != len(self.value):
            raise ValueError(f"{x.shape[-1]} features where the layer has {len(self.value)} inputs")
        count = x.shape[0] if x.ndim > 2 else 1
        flat = x.detach().reshape(-1, x.shape[-1]).float()
        self.tokens += len(flat)
        self.value *= self.sequences / (self.sequences + count)
        self.sequences += count
        self.value.addmm_(flat.T, flat, alpha=2 / self.sequences)

    def mean_square(self) -> Tensor:
        """(features,), the mean square of each input over the tokens."""
        if not self.tokens:
            raise ValueError("no inputs were seen: the calibration text is empty")
        return self.value.diagonal() * self.sequences / (2 * self.tokens)


def inverse_cholesky(hessian: Tensor, damping: float = 0.01) -> tuple[Tensor, float]:
    """The upper Cholesky factor U of the inverse of ``H + damping mean(diag H) I``.

    A matrix that is not positive definite (few calibration tokens, inputs that depend on each
    other) is damped ten times as much until it is.

    Args:
        hessian: (n, n), without zeros on its diagonal.
        damping: share of the diagonal's mean.

    Returns:
        U (n, n) and the damping that was needed.

    Raises:
        ValueError: not even a damping of 100 times the diagonal helps (NaN or Inf in the inputs).
    """
    mean = hessian.diagonal().mean()
    while damping <= 100:
        damped = hessian.clone()
        damped.diagonal().add_(damping * mean)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
            if not failed:
                return upper, damping
        damping *= 10
    raise ValueError(
        "the Hessian cannot be inverted even with strong damping: look for NaN or Inf in the "
        "layer's inputs"
    )


@dataclass(frozen=True)
class GPTQResult(QuantizedWeight):
    """What GPTQ leaves of a matrix.

    Attributes:
        compensated: (rows, inputs), each column as it stood, errors of earlier ones made good,
            at the moment when it was rounded.
        damping: what the Cholesky factorisation needed.
    """

    compensated: Tensor
    damping: float


def gptq(
    weight: Tensor,
    hessian: Tensor,
    rule: GridRule,
    *,
    block: int = 128,
    damping: float = 0.01,
    act_order: bool = False,
    static_groups: bool = False,
    keep: Tensor | None = None,
) -> GPTQResult:
    """Round column by column, each column's error made good by those that follow.

    Args:
        weight: (rows, inputs).
        hessian: (inputs, inputs), ``Hessian.value``.
        rule: grid; with groups the scale of a group comes from the weight as it stood when its
            column block began (corrections of earlier blocks in, those of the same block not).
        block: columns whose corrections are applied together.
        damping: see ``inverse_cholesky``.
        act_order: columns in order of falling diagonal.
        static_groups: all groups' scales from the original weight.
        keep: bool (rows, inputs); where it is False the result is 0 (a pruned model keeps its
            zeros).

    Returns:
        codes, grid and compensated columns, in the original order of the inputs.

    Raises:
        ValueError: ``act_order`` with groups that are not static (the grid could not be stored
            without an index), groups that straddle column blocks, or inputs that do not divide
            into groups.
    """
    _, group = in_groups(weight, rule.group)
    rows, inputs = weight.shape
    grouped = group != inputs
    if act_order and grouped and not static_groups:
        raise ValueError("act_order with groups needs static_groups=True")
    if grouped and not static_groups and block % group and group % block:
        raise ValueError(f"groups of {group} straddle column blocks of {block}; take a divisor")
    work = weight.detach().float().clone()
    hessian = hessian.clone()
    mean_square = hessian.diagonal().clone()
    fixed: Grid | None = rule(work, mean_square) if not grouped else None
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    work[:, dead] = 0
    if grouped and static_groups:
        fixed = rule(work, mean_square)

    order = torch.arange(inputs, device=work.device)
    if act_order:
        order = torch.argsort(hessian.diagonal(), descending=True)
        work, hessian = work[:, order], hessian[order][:, order]
        keep = None if keep is None else keep[:, order]
    upper, damping = inverse_cholesky(hessian, damping)

    scales = torch.empty(rows, inputs // group, device=work.device)
    zeros = torch.empty_like(scales)
    if fixed is not None:
        scales, zeros = fixed.scale, fixed.zero
    codes = torch.empty_like(work)
    compensated = torch.empty_like(work)
    top = 2**rule.bits - 1
    group_of = (order // group).tolist()
    for start in range(0, inputs, block):
        stop = min(start + block, inputs)
        part = work[:, start:stop].clone()
        errors = torch.empty_like(part)
        for i in range(start, stop):
            here = group_of[i]
            if fixed is None and i % group == 0:
                one = GridRule(rule.bits, -1, rule.symmetric, rule.rule, rule.search)
                span = slice(i, i + group)
                found = one(work[:, span], mean_square[span])
                scales[:, here], zeros[:, here] = found.scale[:, 0], found.zero[:, 0]
            column, scale, zero = part[:, i - start], scales[:, here], zeros[:, here]
            compensated[:, i] = column
            code = (torch.round(column / scale) + zero).clamp_(0, top)
            codes[:, i] = code if keep is None else torch.where(keep[:, i], code, zero)
            error = (column - (codes[:, i] - zero) * scale) / upper[i, i]
            part[:, i - start :].addr_(error, upper[i, i:stop], alpha=-1)
            errors[:, i - start] = error
        work[:, stop:].addmm_(errors, upper[start:stop, stop:], alpha=-1)
    back = torch.argsort(order)
    grid = Grid(scales, zeros, rule.bits, group, rule.symmetric)
    return GPTQResult(codes[:, back].to(torch.uint8), grid, compensated[:, back], damping)
