"""SparseGPT: prune column by column, and let the columns that follow make the errors good."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from papers_shared.quantization import GridRule, QuantizedWeight, inverse_cholesky
from transformer_compression.prune.weights import Pattern, threshold_keep


@dataclass(frozen=True)
class SparseGPTResult:
    """What SparseGPT leaves of a matrix.

    Attributes:
        weight: (rows, inputs), zeros where pruned.
        keep: bool (rows, inputs); kept weights that round to zero are True here.
        damping: what the Cholesky factorisation needed.
        quantized: the same weights as codes, where a grid was given.
    """

    weight: Tensor
    keep: Tensor
    damping: float
    quantized: QuantizedWeight | None = None


@torch.no_grad()
def sparsegpt(
    weight: Tensor,
    hessian: Tensor,
    pattern: Pattern,
    *,
    block: int = 128,
    damping: float = 0.01,
    grid: GridRule | None = None,
) -> SparseGPTResult:
    """Prune a matrix and correct what stays.

    Args:
        weight: (rows, inputs).
        hessian: (inputs, inputs), ``papers_shared.quantization.Hessian.value``.
        pattern: unstructured: of each column block, all rows together, the lowest scores
            ``w^2 / U_jj^2`` up to the one at position ``int(count * sparsity)``, that one included;
            N:M: chosen from the weights as corrected so far, M columns at a time.
        block: columns whose corrections are applied together.
        damping: share of the Hessian's mean diagonal that is added to it.
        grid: prune and quantize together: kept weights go to this grid of one group a row, fixed
            from the original full rows.

    Raises:
        ValueError: M does not divide inputs and block, the grid has groups, or a Hessian that
            cannot be inverted.

    Source: Frantar & Alistarh, arXiv 2301.00774; sheet 4.3.
    """
    inputs = weight.shape[1]
    if pattern.m and (inputs % pattern.m or block % pattern.m):
        raise ValueError(
            f"pattern {pattern} needs inputs ({inputs}) and column blocks ({block}) that are "
            f"multiples of {pattern.m}"
        )
    if grid is not None and grid.group not in (-1, inputs):
        raise ValueError(f"joint quantization has one group a row, not groups of {grid.group}")
    work = weight.detach().float().clone()
    hessian = hessian.float().clone()
    found = None if grid is None else grid(work, hessian.diagonal().clone())
    if found is not None:
        scale, zero = found.scale[:, 0], found.zero[:, 0]
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    work[:, dead] = 0
    upper, damping = inverse_cholesky(hessian, damping)

    keep = torch.ones_like(work, dtype=torch.bool)
    result = torch.empty_like(work)
    for start in range(0, inputs, block):
        stop = min(start + block, inputs)
        part = work[:, start:stop].clone()
        diagonal = upper.diagonal()[start:stop]
        errors = torch.empty_like(part)
        stays = keep[:, start:stop]
        if not pattern.m:
            stays.copy_(threshold_keep(part.square() / diagonal.square(), pattern.sparsity))
        for i in range(stop - start):
            if pattern.m and i % pattern.m == 0:
                span = slice(i, i + pattern.m)
                scores = part[:, span].square() / diagonal[span].square()
                lowest = scores.topk(pattern.n, dim=1, largest=False).indices
                stays[:, span] = torch.ones_like(scores, dtype=torch.bool).scatter_(
                    1, lowest, False
                )
            column = part[:, i]
            kept = torch.where(stays[:, i], column, 0.0)
            if found is not None:
                codes = (torch.round(kept / scale) + zero).clamp_(0, found.top)
                kept = (codes - zero) * scale
            result[:, start + i] = kept
            error = (column - kept) / diagonal[i]
            part[:, i:].addr_(error, upper[start + i, start + i : stop], alpha=-1)
            errors[:, i] = error
        work[:, stop:].addmm_(errors, upper[start:stop, stop:], alpha=-1)
    quantized = None
    if found is not None:
        quantized = QuantizedWeight(found.codes(result).to(torch.uint8), found)
    return SparseGPTResult(result, keep, damping, quantized)
