"""Round to nearest, and GPTQ, on a whole language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from papers_shared.quantization import (
    GridRule,
    Hessian,
    QuantizedWeight,
    gptq,
    round_to_nearest,
)
from transformer_compression.core import Data, Outcome
from transformer_compression.quantize.walk import (
    InputMoments,
    quantize_blocks,
    weights_outcome,
)


def rtn_language(model: nn.Module, data: Data, **grid: Any) -> Outcome:
    """Every weight to the nearest point of its grid.

    Args:
        model: a causal language model, changed in place.
        data: calibration batches, for the start scales alone.
        grid: of ``GridRule``.
    """
    rule = GridRule(**grid)

    def round_linear(linear: nn.Linear, seen: InputMoments | Hessian) -> QuantizedWeight:
        return round_to_nearest(linear.weight.float(), rule, seen.mean_square())

    return weights_outcome(model, quantize_blocks(model, data, round_linear))


def gptq_language(
    model: nn.Module,
    data: Data,
    *,
    block: int,
    damping: float,
    act_order: bool,
    static_groups: bool,
    keep_zeros: bool,
    **grid: Any,
) -> Outcome:
    """GPTQ, block by block with quantized outputs feeding the next.

    Args:
        model: a causal language model, changed in place.
        data: calibration batches; better more tokens than the widest layer has inputs.
        block, damping, act_order, static_groups: see ``papers_shared.quantization.gptq``.
        keep_zeros: weights that are 0 (pruned before) stay 0.
        grid: of ``GridRule``.

    Source: Frantar et al., arXiv 2210.17323; CBQ sheet 4.7.
    """
    rule = GridRule(**grid)
    dampings: dict[str, float] = {}

    def round_linear(linear: nn.Linear, seen: InputMoments | Hessian) -> QuantizedWeight:
        assert isinstance(seen, Hessian)
        zeros = linear.weight == 0
        # A few weights are 0 by chance; only a pruned matrix has many.
        pruned = keep_zeros and bool(zeros.float().mean() > 0.01)
        result = gptq(
            linear.weight,
            seen.value,
            rule,
            block=block,
            damping=damping,
            act_order=act_order,
            static_groups=static_groups,
            keep=~zeros if pruned else None,
        )
        if result.damping != damping:
            dampings[f"{len(dampings)}: {tuple(linear.weight.shape)}"] = result.damping
        return QuantizedWeight(result.codes, result.grid)

    with torch.no_grad():
        quantized = quantize_blocks(model, data, round_linear, hessian=True)
    outcome = weights_outcome(model, quantized, details={"stronger damping": dampings})
    if dampings:
        note = (
            f"{len(dampings)} layers needed a damping above {damping}: give more calibration tokens"
        )
        outcome.notes = (*outcome.notes, note)
    return outcome
