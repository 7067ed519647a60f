"""LoRA-Rounding: AdaRound whose matrix of logits has a low rank.

``W^ = (clamp(floor(W / S) + dW + z, 0, 2^n - 1) - z) S`` with
``dW = clip(sigmoid(V)(zeta - gamma) + gamma, 0, 1)`` and ``V = V0 + A1 A2``.

Source: section 3.2 of the paper; AdaRound's relaxation and its schedule as BRECQ has them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ZETA, GAMMA = 1.1, -0.1
# Beyond this magnitude of V the rounding is exactly 0 or 1, and has no gradient.
SATURATED = math.log((ZETA - GAMMA) / -GAMMA - 1)
FROZEN = 64.0  # logit of a weight beyond the range: its code is the end's, for good


def rectified_sigmoid(logits: Tensor) -> Tensor:
    """``clip(sigmoid(V)(zeta - gamma) + gamma, 0, 1)``, the soft rounding dW."""
    return (logits.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def adaround_logits(fraction: Tensor) -> Tensor:
    """V0 whose soft rounding is ``fraction``, in [0, 1): ``-log((zeta-gamma)/(f-gamma) - 1)``."""
    return -((ZETA - GAMMA) / (fraction - GAMMA) - 1).log()


def commitment(soft: Tensor, beta: float) -> Tensor:
    """``1 - |2 dW - 1|^beta``, elementwise: 0 where dW is 0 or 1."""
    return 1 - (2 * soft - 1).abs() ** beta


def beta_schedule(
    step: int, steps: int, *, start: float = 20.0, end: float = 2.0, warmup: float = 0.2
) -> float:
    """The exponent of ``commitment`` at a step; 0 during the warm-up, which goes without it.

    ``end + (start - end) max(0, 1 - t')`` with t' linear in what comes after the warm-up.
    """
    begun = warmup * steps
    if step < begun:
        return 0.0
    return end + (start - end) * max(0.0, 1 - (step - begun) / max(steps - begun, 1))


def split_codes(position: Tensor, zero: Tensor, qmax: int) -> tuple[Tensor, Tensor]:
    """Lower code less zero point, and V0, of weights at ``position`` = W / S.

    The lower code is kept within 0 .. qmax - 1, so that adding 0 or 1 never leaves the range;
    weights outside get a logit that no training moves.

    Args:
        position: (out, groups, size).
        zero: (out, groups, 1), integers.
        qmax: the largest code.

    Returns:
        ``floor(W/S)`` within the range (that is, code - zero), and the logits; both like position.
    """
    lower = position.floor()
    logits = adaround_logits(position - lower)
    code = lower + zero
    logits = torch.where(code < 0, -FROZEN, torch.where(code >= qmax, FROZEN, logits))
    return code.clamp(0, qmax - 1) - zero, logits


_CHUNK = 1 << 16  # values worked on together on a CPU: they stay in a core's cache


class RoundWeight(torch.autograd.Function):
    """``(lower + dW) S`` with ``V = V0 + A1 A2`` (or ``V0 + D``), and the gradients of A1, A2, S.

    Forwards dW is 0 or 1 (``hard``) or between; backwards always that of the soft dW:
    ``dW^/dV = S (zeta - gamma) sigmoid(V)(1 - sigmoid(V))`` within the clip, and
    ``dW^/dS = lower + dW``. On a CPU a few rows at a time: a pass over a whole matrix is bound by
    memory.
    V is worked out again backwards rather than kept.

    Args (of ``apply``):
        left: A1 (out, rank), or D (out, in) where ``right`` is None.
        right: A2 (rank, in) or None.
        logits_0, lower: V0 and the lower codes less zero point, (out, groups, size).
        step: (out, groups, 1).
        hard: rounds.
        dtype: of the result.

    Returns:
        (out, in).
    """

    @staticmethod
    def forward(
        ctx: Any,
        left: Tensor,
        right: Tensor | None,
        step: Tensor,
        logits_0: Tensor,
        lower: Tensor,
        hard: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        out = torch.empty(lower.shape, dtype=dtype, device=lower.device)
        for rows in _chunks(lower):
            logits = _logits(left[rows], right, logits_0[rows])
            added = (logits >= 0) if hard else rectified_sigmoid(logits)
            torch.mul(lower[rows] + added, step[rows], out=logits)
            out[rows] = logits
        ctx.save_for_backward(left, right, step, logits_0, lower)
        ctx.hard = hard
        return out.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        left, right, step, logits_0, lower = ctx.saved_tensors
        learn, steps = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        grad = grad.view(lower.shape)
        for_left = torch.empty_like(left) if learn else None
        for_right = torch.zeros_like(right) if learn and right is not None else None
        for_step = torch.empty_like(step) if steps else None
        for rows in _chunks(lower):
            g = grad[rows].to(step.dtype)
            logits = _logits(left[rows], right, logits_0[rows])
            if for_step is not None:
                added = (logits >= 0) if ctx.hard else rectified_sigmoid(logits)
                for_step[rows] = (lower[rows] + added).mul_(g).sum(-1, keepdim=True)
            if for_left is None:
                continue
            moving = logits.abs() < SATURATED
            slope = logits.sigmoid_()
            slope.addcmul_(slope, slope, value=-1).mul_(ZETA - GAMMA).mul_(moving)
            slope = slope.mul_(step[rows]).mul_(g).flatten(1)
            if for_right is None or right is None:
                for_left[rows] = slope
            else:
                torch.mm(slope, right.T, out=for_left[rows])
                for_right.addmm_(left[rows].T, slope)
        return for_left, for_right, for_step, None, None, None, None


def _chunks(like: Tensor) -> list[slice]:
    if like.device.type != "cpu":
        return [slice(None)]
    rows = max(1, _CHUNK // max(1, like[0].numel()))
    return [slice(i, i + rows) for i in range(0, len(like), rows)]


def _logits(left: Tensor, right: Tensor | None, logits_0: Tensor) -> Tensor:
    """V of some rows, a fresh tensor."""
    flat = logits_0.flatten(1)
    change = flat + left if right is None else torch.addmm(flat, left, right)
    return change.view(logits_0.shape)
