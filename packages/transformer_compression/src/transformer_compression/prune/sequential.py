"""One-shot pruning of a whole model, block by block: statistics, pruning, on with the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from papers_shared.language_models import block_linears, block_names, observe_inputs, walk_blocks
from papers_shared.quantization import GridRule, Hessian, QuantizedWeight
from transformer_compression.prune.semi_structured import device_support, sparse_bytes
from transformer_compression.prune.sparsegpt import sparsegpt
from transformer_compression.prune.weights import (
    InputNorms,
    Pattern,
    check_pattern,
    global_magnitude_keep,
    magnitude_keep,
    wanda_keep,
)

Method = Literal["magnitude", "global_magnitude", "wanda", "sparsegpt"]
Observe = Callable[[Callable[[str, Tensor], None]], object]


@dataclass
class PruneReport:
    """What pruning did to a model's matrices.

    Attributes:
        method: by which.
        pattern: the share or N:M asked for.
        zeros: weights that are zero.
        weights: of all pruned matrices.
        bytes: of these matrices by the report's rule.
        layer_bytes: layer -> its part of them.
        dense_bytes: of the same at 16 bits.
        seconds: of the whole pass.
        pattern_holds: whether every matrix has the N:M pattern (True without one).
        device: whether the model's device gains time from the pattern, in words.
        damping: layer -> damping, where more than asked for was needed.
        quantized: layer -> codes, where pruning and quantizing were joint.
    """

    method: str
    pattern: str
    zeros: int = 0
    weights: int = 0
    bytes: float = 0.0
    layer_bytes: dict[str, float] = field(default_factory=dict, repr=False)
    dense_bytes: float = 0.0
    seconds: float = 0.0
    pattern_holds: bool = True
    device: str = ""
    damping: dict[str, float] = field(default_factory=dict)
    quantized: dict[str, QuantizedWeight] = field(default_factory=dict, repr=False)

    @property
    def sparsity(self) -> float:
        return self.zeros / max(1, self.weights)


def prune_weights(
    model: nn.Module,
    batches: Sequence[Tensor] = (),
    *,
    method: Method = "wanda",
    pattern: Pattern | str | float = 0.5,
    block: int = 128,
    damping: float = 0.01,
    equal_rows: bool = True,
    grid: GridRule | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> PruneReport:
    """Prune every linear layer inside the decoder blocks, in place.

    Embeddings, norms and the output layer stay. Blocks are done in order: each one's statistics
    come from inputs that have gone through the pruned blocks before it.

    Args:
        model: a causal language model of transformers.
        batches: calibration token ids (B, T) each; magnitude needs none.
        method: magnitude (a threshold a layer, or one for all: global_magnitude), wanda, sparsegpt.
        pattern: share of weights that go, or "2:4", "4:8".
        block: SparseGPT's columns a block.
        damping: SparseGPT's.
        equal_rows: Wanda's; see ``wanda_keep``.
        grid: SparseGPT's joint quantization.
        progress: called as ``progress(done, total, what)``.

    Raises:
        ValueError: unknown method, no batches where they are needed, or a pattern that does not
            fit the layers.
    """
    from papers_shared.language_models import find_blocks

    pattern = Pattern.of(pattern)
    names = block_names(model)
    if method in ("magnitude", "global_magnitude"):
        groups: Iterable[tuple[str, nn.Module, Observe]] = (
            (name, blk, lambda observe: None)
            for name, blk in zip(names, find_blocks(model), strict=True)
        )
    else:
        groups = (
            (names[index], blk, partial(observe_inputs, blk, stream))
            for index, blk, stream in walk_blocks(model, batches, progress)
        )
    return prune_groups(
        groups,
        method=method,
        pattern=pattern,
        block=block,
        damping=damping,
        equal_rows=equal_rows,
        grid=grid,
        device=next(model.parameters()).device,
    )


@torch.no_grad()
def prune_groups(
    groups: Iterable[tuple[str, nn.Module, Observe]],
    *,
    method: Method,
    pattern: Pattern,
    device: torch.device | str,
    block: int = 128,
    damping: float = 0.01,
    equal_rows: bool = True,
    grid: GridRule | None = None,
) -> PruneReport:
    """``prune_weights`` on blocks of any model.

    Args:
        groups: name, block, and a function that shows an observer the inputs of the block's linear
            layers; the block is pruned before the next group is asked for.
        method, pattern, block, damping, equal_rows, grid: see ``prune_weights``.
        device: of the model, for the report.
    """
    if method not in get_args(Method):
        raise ValueError(f"method={method!r}: expected one of {', '.join(get_args(Method))}")
    if grid is not None and method != "sparsegpt":
        raise ValueError("pruning and quantizing jointly is sparsegpt's; drop grid=")
    if method == "global_magnitude" and pattern.m:
        raise ValueError("N:M is decided within each group; take magnitude instead")
    report, start = PruneReport(method, str(pattern)), time.perf_counter()
    everything: dict[str, nn.Linear] = {}
    for prefix, blk, observe in groups:
        linears = block_linears(blk)
        statistics = _statistics(linears, method, observe)
        for name, linear in linears.items():
            full = f"{prefix}.{name}"
            everything[full] = linear
            weight = linear.weight
            if method == "sparsegpt":
                hessian = statistics[name].value
                result = sparsegpt(
                    weight, hessian, pattern, block=block, damping=damping, grid=grid
                )
                weight.copy_(result.weight)
                if result.damping != damping:
                    report.damping[full] = result.damping
                if result.quantized is not None:
                    report.quantized[full] = result.quantized
            elif method == "wanda":
                norms = statistics[name].value
                weight.mul_(wanda_keep(weight, norms, pattern, equal_rows=equal_rows))
            elif method == "magnitude":
                weight.mul_(magnitude_keep(weight, pattern))
    if method == "global_magnitude":
        masks = global_magnitude_keep(
            [linear.weight for linear in everything.values()], pattern.sparsity
        )
        for linear, keep in zip(everything.values(), masks, strict=True):
            linear.weight.mul_(keep)
    return finish_report(report, everything, pattern, start=start, device=device, grid=grid)


def _statistics(linears: Mapping[str, nn.Linear], method: Method, observe: Observe) -> dict:
    kind = {"wanda": InputNorms, "sparsegpt": Hessian}.get(method)
    if kind is None:
        return {}
    found = {n: kind(m.in_features, m.weight.device) for n, m in linears.items()}
    observe(lambda name, x: found[name].add(x))
    return found


def finish_report(
    report: PruneReport,
    linears: Mapping[str, nn.Linear],
    pattern: Pattern,
    *,
    start: float,
    device: torch.device | str,
    grid: GridRule | None = None,
) -> PruneReport:
    """Count zeros and bytes, check the pattern, ask the device."""
    bits = 16 if grid is None else grid.bits
    for name, linear in linears.items():
        weight = linear.weight
        report.zeros += int((weight == 0).sum())
        report.weights += weight.numel()
        size = sparse_bytes(weight, pattern, bits=bits)
        report.dense_bytes += 2 * weight.numel()
        report.pattern_holds &= check_pattern(weight, pattern)
        if grid is not None:
            size += len(weight) * (16 + (0 if grid.symmetric else grid.bits)) / 8
        report.layer_bytes[name] = size
        report.bytes += size
    if (pattern.n, pattern.m) == (2, 4):
        report.device = device_support(device).reason
    else:
        report.device = "dense products: no torch kernel gains time from this pattern"
    report.seconds = time.perf_counter() - start
    return report
