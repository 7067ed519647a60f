"""What the weight quantizers of language models share: the walk, the bookkeeping of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from papers_shared.language_models import (
    block_linears,
    block_names,
    observe_inputs,
    walk_blocks,
)
from papers_shared.quantization import Hessian, QuantizedWeight, quantized_bytes
from transformer_compression.core import Data, Outcome
from transformer_compression.prune.adapters import is_vit
from transformer_compression.prune.sequential import Observe
from transformer_compression.prune.vit import vit_groups

RoundLinear = Callable[[nn.Linear, "InputMoments | Hessian"], QuantizedWeight]


class InputMoments:
    """Mean square of each input of a layer, over all tokens.

    Args:
        features: inputs of the layer.
        device: where it is kept.
    """

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        self.total = torch.zeros(features, device=device)
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        """Take in inputs (..., features)."""
        flat = x.reshape(-1, x.shape[-1]).float()
        self.tokens += len(flat)
        self.total += flat.square().sum(0)

    def mean_square(self) -> Tensor:
        """(features,)."""
        return self.total / max(1, self.tokens)


@torch.no_grad()
def quantize_blocks(
    model: nn.Module, data: Data, round_linear: RoundLinear, *, hessian: bool = False
) -> dict[str, QuantizedWeight]:
    """Round every linear layer of the blocks, in order; what follows sees the rounded ones.

    All layers of a block see the inputs from before any of them was rounded.

    Args:
        model: a causal language model or a timm vision transformer, changed in place.
        data: calibration batches.
        round_linear: called with the layer and its inputs' statistics.
        hessian: whether the statistics are whole second moments.

    Returns:
        module name -> codes.
    """
    kind = Hessian if hessian else InputMoments
    quantized: dict[str, QuantizedWeight] = {}
    for prefix, block, observe in _groups(model, data):
        linears = block_linears(block)
        seen = {n: kind(m.in_features, m.weight.device) for n, m in linears.items()}
        observe(partial(add_inputs, seen))
        for name, linear in linears.items():
            weight = round_linear(linear, seen[name])
            linear.weight.copy_(weight.dequantize())
            quantized[f"{prefix}.{name}"] = weight
    return quantized


def add_inputs(seen: Mapping[str, InputMoments | Hessian], name: str, x: Tensor) -> None:
    """Take in what a layer gets; for ``observe_inputs``."""
    seen[name].add(x)


def _groups(model: nn.Module, data: Data) -> Iterator[tuple[str, nn.Module, Observe]]:
    """Name, block, and what shows the inputs of its layers, of either kind of model."""
    if is_vit(model):
        yield from vit_groups(model, data.batches)
        return
    names = block_names(model)
    for index, block, stream in walk_blocks(model, data.batches, data.progress):
        yield names[index], block, partial(observe_inputs, block, stream)


def weights_outcome(
    model: nn.Module, quantized: Mapping[str, QuantizedWeight], *, details: object = None
) -> Outcome:
    """The outcome of a method that leaves codes."""
    sizes = {}
    for name, weight in quantized.items():
        grid = weight.grid
        rows, inputs = weight.codes.shape
        sizes[f"{name}.weight"] = quantized_bytes(
            rows, inputs, bits=grid.bits, group=grid.group, symmetric=grid.symmetric
        )
    note = (
        "weights are codes in an export; in this process they are floating point, so time and "
        "memory stay those of the dense model"
    )
    return Outcome(model, sizes, dict(quantized), (note,), details)
