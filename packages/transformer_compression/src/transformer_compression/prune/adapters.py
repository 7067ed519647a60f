"""The pruning functions in the shape of ``METHODS``: ``function(model, data, **options)``."""

from __future__ import annotations

from typing import Any

from papers_shared.quantization import GridRule
from transformer_compression.core import Data, Outcome
from transformer_compression.prune.context import apply_h2o
from transformer_compression.prune.layers import Criterion, drop_layers
from transformer_compression.prune.sequential import Method, PruneReport, prune_weights
from transformer_compression.prune.structured import prune_structured
from transformer_compression.prune.taylor import Form, Reduction
from transformer_compression.prune.tokens import apply_evit
from transformer_compression.prune.tome import apply_tome, merge_schedule
from transformer_compression.prune.vit import prune_vit_structured, prune_vit_weights


def is_vit(model: Any) -> bool:
    """Whether the model is a timm vision transformer (else it is taken for a language model)."""
    return hasattr(model, "patch_embed") and hasattr(model, "blocks")


def _outcome(model: Any, report: PruneReport) -> Outcome:
    return Outcome(
        model,
        matrix_bytes={f"{name}.weight": size for name, size in report.layer_bytes.items()},
        quantized=report.quantized,
        notes=[report.device],
        details=report,
    )


def _weights(
    model: Any, data: Data, method: Method, pattern: str, grid: GridRule | None = None
) -> Outcome:
    if is_vit(model):
        made = prune_vit_weights(model, data.batches, method=method, pattern=pattern, grid=grid)
    else:
        made = prune_weights(
            model,
            data.batches,
            method=method,
            pattern=pattern,
            grid=grid,
            progress=data.progress,
        )
    return _outcome(model, made)


def magnitude(model: Any, data: Data, *, pattern: str) -> Outcome:
    """The weights of least magnitude."""
    return _weights(model, data, "magnitude", pattern)


def wanda(model: Any, data: Data, *, pattern: str) -> Outcome:
    """Wanda."""
    return _weights(model, data, "wanda", pattern)


def sparsegpt(model: Any, data: Data, *, pattern: str) -> Outcome:
    """SparseGPT."""
    return _weights(model, data, "sparsegpt", pattern)


def sparsegpt_joint(model: Any, data: Data, *, pattern: str, bits: int) -> Outcome:
    """SparseGPT that quantizes what it keeps."""
    grid = GridRule(bits, -1, False, rule="gptq", search="none")
    return _weights(model, data, "sparsegpt", pattern, grid)


def llm_pruner(
    model: Any,
    data: Data,
    *,
    ratio: float,
    form: Form,
    reduction: Reduction,
    layers: str,
    samples: int,
    length: int,
) -> Outcome:
    """``layers``: "4-29", or empty for all; one sample of ``length`` tokens a window, in turn."""
    rows = [row[None, :length] for batch in data.batches for row in batch][:samples]
    model, report = prune_structured(
        model,
        rows,
        ratio=ratio,
        criterion="taylor",
        layers=_layers(layers),
        form=form,
        reduction=reduction,
        progress=data.progress,
    )
    notes = [f"reloads with {report.reload}"]
    if len(rows) < samples:
        notes.append(f"{len(rows)} samples, not {samples}: a window gives one")
    return Outcome(model, notes=notes, details=report)


def _layers(text: str) -> list[int] | None:
    if not text:
        return None
    first, _, last = text.partition("-")
    try:
        return list(range(int(first), int(last or first) + 1))
    except ValueError:
        raise ValueError(f"layers={text!r}: expected a number or a span such as 4-29") from None


def structured_activation(model: Any, data: Data, *, ratio: float, correct: bool) -> Outcome:
    """Heads and channels by what they contribute in forward passes."""
    if is_vit(model):
        made = prune_vit_structured(model, data.batches, ratio=ratio, correct=correct)
        return Outcome(model, notes=["smaller matrices: less time on any device"], details=made)
    model, report = prune_structured(
        model,
        data.batches,
        ratio=ratio,
        criterion="activation",
        correct=correct,
        progress=data.progress,
    )
    return Outcome(model, notes=[f"reloads with {report.reload}"], details=report)


def layer_drop(model: Any, data: Data, *, count: int, criterion: Criterion, seed: int) -> Outcome:
    """The layers that do least."""
    model, report = drop_layers(
        model, data.batches, count=count, criterion=criterion, seed=seed, progress=data.progress
    )
    return Outcome(model, notes=[f"without layers {report.removed}"], details=report)


def h2o(model: Any, data: Data, *, heavy: int, recent: int) -> Outcome:
    """A cache that forgets."""
    apply_h2o(model, heavy=heavy, recent=recent)
    return Outcome(
        model, notes=[f"the cache holds {heavy + recent} keys a layer; whole passes are unchanged"]
    )


def tome(model: Any, data: Data, *, r: int, proportional: bool) -> Outcome:
    """Token merging."""
    apply_tome(model, r, proportional=proportional)
    schedule = merge_schedule(r, len(model.blocks))
    return Outcome(model, notes=[f"merges {schedule} tokens in its blocks"])


def evit(model: Any, data: Data, *, keep: float, fuse: bool) -> Outcome:
    """Token dropping by attention."""
    apply_evit(model, keep, fuse=fuse)
    return Outcome(model, notes=[f"keeps {keep:g} of the tokens three times"])
