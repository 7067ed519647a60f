"""``compress``: one method, or several in turn, on any model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from papers_shared.quantization import Grid, QuantizedWeight, quantized_bytes
from transformer_compression.core import Data, Outcome, Report
from transformer_compression.methods import find_method
from transformer_compression.prune.semi_structured import sparse_bytes
from transformer_compression.prune.sequential import PruneReport
from transformer_compression.prune.weights import Pattern, check_pattern

DENSE_BYTES = 2  # a weight; the sheet's rule


def compress(
    model: nn.Module, method: str, data: Data | Sequence[Tensor] = (), **options: Any
) -> tuple[nn.Module, Report]:
    """Compress a model with one method.

    Args:
        model: a causal language model of transformers, or a timm vision transformer. Most methods
            change it in place: copy it first to keep the original.
        method: a name of ``METHODS``.
        data: calibration batches (token ids (B, T) or pictures (B, 3, H, W)), or a ``Data``.
        options: of the method; ``METHODS[method].options`` has the defaults.

    Returns:
        the compressed model and a report.

    Raises:
        ValueError: unknown method or option, or missing data.
    """
    return compress_in_turn(model, [(method, options)], data)


def compress_in_turn(
    model: nn.Module,
    steps: Sequence[tuple[str, dict[str, Any]]],
    data: Data | Sequence[Tensor] = (),
) -> tuple[nn.Module, Report]:
    """Several methods, one after the other, on the same data.

    Args:
        model: see ``compress``.
        steps: (method, options) each.
        data: see ``compress``.
    """
    data = data if isinstance(data, Data) else Data(list(data))
    if not steps:
        raise ValueError("no method was named")
    methods = [(find_method(name), options) for name, options in steps]
    before = sum(p.numel() for p in model.parameters())
    report = Report(parameters_before=before, bytes_before=DENSE_BYTES * before)
    outcome, ledger = Outcome(model), Ledger()
    for method, options in methods:
        start, cpu = time.perf_counter(), time.process_time()
        outcome = method(outcome.model, data, **options)
        report.seconds.append(time.perf_counter() - start)
        report.cpu_seconds.append(time.process_time() - cpu)
        report.methods.append(method.name)
        report.options.append({**method.options, **options})
        report.notes += outcome.notes
        report.details.append(outcome.details)
        ledger.enter(method.name, outcome)
    parameters = dict(outcome.model.named_parameters())
    report.quantized, sizes = ledger.settle(parameters)
    report.parameters = sum(p.numel() for p in parameters.values())
    report.nonzero = sum(int((p != 0).sum()) for p in parameters.values())
    report.bytes = sum(sizes.get(name, DENSE_BYTES * p.numel()) for name, p in parameters.items())
    return outcome.model, report


@dataclass
class Ledger:
    """What each method said of the matrices, and what of it still holds at the end.

    A pruned matrix may be quantized afterwards, or the other way round; a method may also undo
    what one before it did. So codes count where the weights still lie on their grid, patterns
    where their zeros are still there, and both together as the report's rule has it.
    """

    sizes: dict[str, tuple[torch.Size, float]] = field(default_factory=dict)
    quantized: dict[str, QuantizedWeight] = field(default_factory=dict)
    patterns: dict[str, Pattern] = field(default_factory=dict)

    def enter(self, method: str, outcome: Outcome) -> None:
        """Note what a method left.

        Raises:
            ValueError: it counts parameters that the model does not have.
        """
        parameters = dict(outcome.model.named_parameters())
        if unknown := set(outcome.matrix_bytes) - set(parameters):
            raise ValueError(f"{method} counts parameters that are not there: {unknown}")
        for name, size in outcome.matrix_bytes.items():
            self.sizes[name] = parameters[name].shape, size
        self.quantized |= outcome.quantized
        if isinstance(outcome.details, PruneReport):
            pattern = Pattern.of(outcome.details.pattern)
            self.patterns |= dict.fromkeys(outcome.details.layer_bytes, pattern)

    @torch.no_grad()
    def settle(
        self, parameters: Mapping[str, nn.Parameter]
    ) -> tuple[dict[str, QuantizedWeight], dict[str, float]]:
        """Codes by module, and bytes by parameter, that hold for these weights."""
        sizes = {
            name: size
            for name, (shape, size) in self.sizes.items()
            if name in parameters and parameters[name].shape == shape
        }
        codes: dict[str, QuantizedWeight] = {}
        for module in {*self.quantized, *self.patterns}:
            name = f"{module}.weight"
            weight = parameters.get(name)
            if weight is None or name not in sizes:
                continue
            held = self.quantized.get(module)
            if held is not None and (fresh := _on_grid(held, weight)) is not None:
                codes[module] = fresh
            pattern = self.patterns.get(module)
            if pattern is not None and not _holds(pattern, weight):
                pattern = None
            if module in codes:
                sizes[name] = _coded_bytes(codes[module].grid, weight, pattern)
            elif pattern is not None:
                sizes[name] = sparse_bytes(weight, pattern)
            else:
                del sizes[name]
        return codes, sizes


def _on_grid(held: QuantizedWeight, weight: Tensor) -> QuantizedWeight | None:
    """The codes of a weight that lies on an earlier grid, or None."""
    if held.codes.shape != weight.shape:
        return None
    codes = held.grid.codes(weight.to(held.grid.scale.dtype))
    fresh = QuantizedWeight(codes.to(torch.uint8), held.grid)
    near = torch.allclose(fresh.dequantize().to(weight), weight, rtol=1e-3, atol=1e-6)
    return fresh if near else None


def _holds(pattern: Pattern, weight: Tensor) -> bool:
    if pattern.m:
        return check_pattern(weight, pattern)
    return (weight == 0).float().mean().item() >= 0.99 * pattern.sparsity


def _coded_bytes(grid: Grid, weight: Tensor, pattern: Pattern | None) -> float:
    rows, inputs = weight.shape
    dense = quantized_bytes(
        rows, inputs, bits=grid.bits, group=grid.group, symmetric=grid.symmetric
    )
    if pattern is None:
        return dense
    return dense - rows * inputs * grid.bits / 8 + sparse_bytes(weight, pattern, bits=grid.bits)
