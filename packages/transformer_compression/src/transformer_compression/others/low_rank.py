"""Low-rank factors in the place of matrices: truncated SVD, on the weights or on the outputs.

Source: sheet 4.14; TSVD and LoRD are the survey's examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from papers_shared.language_models import (
    block_linears,
    block_names,
    find_blocks,
    observe_inputs,
    walk_blocks,
)
from papers_shared.quantization import Hessian
from transformer_compression.core import Data, Outcome
from transformer_compression.prune.removal import RANKS
from transformer_compression.quantize.walk import add_inputs


def rank_for(rows: int, inputs: int, ratio: float) -> int:
    """The rank whose two factors have ``ratio`` of the matrix's weights: ``ratio d k / (d + k)``.

    Raises:
        ValueError: the ratio leaves no rank.
    """
    rank = int(ratio * rows * inputs / (rows + inputs))
    if not 1 <= rank <= min(rows, inputs):
        raise ValueError(f"ratio={ratio}: a {rows} x {inputs} matrix would have rank {rank}")
    return rank


def low_rank_factors(
    weight: Tensor, rank: int, second_moment: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``W ~ A B`` of a rank, A (rows, rank) and B (rank, inputs).

    Args:
        weight: (rows, inputs).
        rank: of both factors.
        second_moment: (inputs, inputs), any multiple of ``X^T X``: the least error of the outputs
            on these inputs instead of that of the weights.
    """
    work = weight.detach().double()
    if second_moment is None:
        u, s, v = torch.linalg.svd(work, full_matrices=False)
        return (u[:, :rank] * s[:rank]).to(weight.dtype), v[:rank].to(weight.dtype)
    moment = second_moment.double().clone()
    moment.diagonal().add_(1e-4 * moment.diagonal().mean())
    root = torch.linalg.cholesky(moment)
    u, s, v = torch.linalg.svd(work @ root, full_matrices=False)
    b = torch.linalg.solve_triangular(root, v[:rank], upper=False, left=False)
    return (u[:, :rank] * s[:rank]).to(weight.dtype), b.to(weight.dtype)


class LowRankLinear(nn.Module):
    """Two linear layers for one: (..., inputs) -> (..., rank) -> (..., rows).

    Args:
        inputs, rank, rows: sizes.
        bias: whether there is one.
    """

    def __init__(self, inputs: int, rank: int, rows: int, *, bias: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, rank, bias=False)
        self.second = nn.Linear(rank, rows, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., rows)."""
        return self.second(self.first(x))


def _replace(model: nn.Module, name: str, rank: int) -> LowRankLinear:
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    made = LowRankLinear(
        linear.in_features, rank, linear.out_features, bias=linear.bias is not None
    ).to(linear.weight)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, made)
    return made


def low_rank_structure(model: nn.Module, ranks: Mapping[str, int]) -> None:
    """Put fresh factors in the place of the named layers, for a state dict to be loaded."""
    for name, rank in ranks.items():
        _replace(model, name, rank)


@torch.no_grad()
def low_rank_language(model: Any, data: Data, *, ratio: float, activations: bool) -> Outcome:
    """Factors for every linear layer of the blocks.

    Args:
        model: a causal language model, changed in place.
        data: calibration batches.
        ratio: of the weights that are left.
        activations: least error of outputs instead of weights.
    """
    ranks: dict[str, int] = dict(getattr(model.config, RANKS, None) or {})
    names = block_names(model)
    for index, block, stream in walk_blocks(model, data.batches, data.progress):
        linears = block_linears(block)
        seen = {}
        if activations:
            seen = {n: Hessian(m.in_features, m.weight.device) for n, m in linears.items()}
            observe_inputs(block, stream, partial(add_inputs, seen))
        for name, linear in linears.items():
            rank = rank_for(linear.out_features, linear.in_features, ratio)
            moment = seen[name].value if activations else None
            a, b = low_rank_factors(linear.weight, rank, moment)
            made = _replace(block, name, rank)
            made.first.weight.copy_(b)
            made.second.weight.copy_(a)
            if linear.bias is not None:
                made.second.bias.copy_(linear.bias)
            ranks[f"{names[index]}.{name}"] = rank
    assert len(find_blocks(model)) == len(names)
    setattr(model.config, RANKS, ranks)
    return Outcome(model, notes=("two smaller products for one: less time on any device",))
