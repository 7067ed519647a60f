"""``compress``: one method, or several in turn, on any model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from transformer_compression.core import Data, Outcome, Report
from transformer_compression.methods import find_method

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
    outcome = Outcome(model)
    for method, options in methods:
        start = time.perf_counter()
        outcome = method(outcome.model, data, **options)
        report.seconds.append(time.perf_counter() - start)
        report.methods.append(method.name)
        report.options.append({**method.options, **options})
        report.notes += outcome.notes
        report.details.append(outcome.details)
    # A later method may change what an earlier one counted: only the last one's bytes hold.
    report.quantized = dict(outcome.quantized)
    parameters = dict(outcome.model.named_parameters())
    if unknown := set(outcome.matrix_bytes) - set(parameters):
        raise ValueError(f"{report.methods[-1]} counts parameters that are not there: {unknown}")
    report.parameters = sum(p.numel() for p in parameters.values())
    report.nonzero = sum(int((p != 0).sum()) for p in parameters.values())
    report.bytes = sum(
        outcome.matrix_bytes.get(name, DENSE_BYTES * p.numel()) for name, p in parameters.items()
    )
    return outcome.model, report
