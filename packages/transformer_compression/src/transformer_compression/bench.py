"""The survey's common table on one language model: every method, the same data, one protocol."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformer_compression.compressing import DENSE_BYTES, compress_in_turn
from transformer_compression.core import Progress, Report, silent
from transformer_compression.measure import disk_bytes, language_quality, measure_cost
from transformer_compression.models import Loaded, language_data

Steps = Sequence[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Protocol:
    """What every row has in common.

    Attributes:
        calibration_windows, calibration_length: of the calibration text.
        window, windows: of the perplexity on the evaluation text, from its start.
        questions: multiple-choice questions made from the evaluation text; 0: none.
        draws: calibration draws, of which only the first is measured beyond perplexity.
        seed: of the first draw.
        text: calibration text; None: WikiText-2's validation part.
        evaluation: evaluation text; None: WikiText-2's test part.
    """

    calibration_windows: int = 8
    calibration_length: int = 512
    window: int = 512
    windows: int = 10
    questions: int = 40
    draws: int = 1
    seed: int = 0
    text: Path | None = None
    evaluation: Path | None = None


@dataclass
class Row:
    """What was measured of one method: column -> value, and the report.

    Attributes:
        values: by the columns of the table.
        spread: column -> sample standard deviation over the calibration draws.
        report: of the compression; None: the dense model.
    """

    values: dict[str, float]
    spread: dict[str, float] = field(default_factory=dict)
    report: Report | None = None


def measure_row(
    dense: Loaded, steps: Steps, protocol: Protocol, workdir: Path, progress: Progress = silent
) -> Row:
    """Compress a copy of a language model and measure it beside the dense one.

    Args:
        dense: the model; it is not changed.
        steps: methods with their options, in turn; none: the dense model itself.
        protocol: see ``Protocol``.
        workdir: an empty folder.
        progress: called as ``progress(done, total, what)``.
    """
    from papers_shared.language_models import wikitext2

    text = (
        wikitext2("test")
        if protocol.evaluation is None
        else protocol.evaluation.read_text(encoding="utf-8")
    )
    row: Row | None = None
    found: list[float] = []
    for draw in range(protocol.draws):
        model, report = copy.deepcopy(dense.model), None
        if steps:
            data = language_data(
                dense,
                text=protocol.text,
                windows=protocol.calibration_windows,
                length=protocol.calibration_length,
                seed=protocol.seed + draw,
                progress=progress,
            )
            model, report = compress_in_turn(model, steps, data)
        quality = language_quality(
            model.eval(),
            dense.tokenizer,
            text,
            window=protocol.window,
            windows=protocol.windows,
            questions=protocol.questions if draw == 0 else 0,
            progress=progress,
        )
        found.append(quality["perplexity"])
        if row is None:
            row = Row({**quality, **_figures(dense, model, report, workdir)}, report=report)
    assert row is not None
    if len(found) > 1:
        row.values["perplexity"] = statistics.mean(found)
        row.spread["perplexity"] = statistics.stdev(found)
    return row


def _figures(dense: Loaded, model: Any, report: Report | None, workdir: Path) -> dict[str, float]:
    reference = None if report is None else dense.model
    cost = measure_cost(model, language=True, reference=reference, rounds=2)
    count = sum(p.numel() for p in model.parameters())
    nonzero = count if report is None else report.nonzero
    counted = DENSE_BYTES * count if report is None else report.bytes
    return {
        "parameters": count / 1e6,
        "nonzero": nonzero / 1e6,
        "bytes": counted / 1e6,
        "disk": disk_bytes(model, report, workdir / "disk") / 1e6,
        "macs": cost.macs / 1e6,
        "forward_ms": 1e3 * cost.forward,
        "speedup": cost.speedup,
        "step_ms": 1e3 * cost.step,
        "step_speedup": cost.step_speedup,
        "weights": cost.weights / 1e6,
        "peak": cost.peak / 1e6,
        "seconds": 0.0 if report is None else sum(report.cpu_seconds),
    }


W4: dict[str, Any] = {"bits": 4}
W3: dict[str, Any] = {"bits": 3}
_SHORT = {"steps": 16}
_STUDENT = {"steps": 40}
# The table's rows on a language model. Options that are not named are the methods' defaults.
LANGUAGE_ROWS: Mapping[str, Steps] = {
    "dense": (),
    "magnitude": [("magnitude", {})],
    "wanda": [("wanda", {})],
    "sparsegpt": [("sparsegpt", {})],
    "wanda_4_8": [("wanda", {"pattern": "4:8"})],
    "magnitude_2_4": [("magnitude_2_4", {})],
    "wanda_2_4": [("wanda_2_4", {})],
    "sparsegpt_2_4": [("sparsegpt_2_4", {})],
    "sparsegpt_joint": [("sparsegpt_joint", {})],
    "llm_pruner": [("llm_pruner", {})],
    "structured_activation": [("structured_activation", {})],
    "layer_drop": [("layer_drop", {})],
    "low_rank": [("low_rank", {})],
    "rtn_w4": [("rtn", W4)],
    "gptq_w4": [("gptq", W4)],
    "nf4": [("nf4", {})],
    "rtn_w3_minmax": [("rtn", {**W3, "search": "none"})],
    "rtn_w3": [("rtn", W3)],
    "gptq_w3": [("gptq", W3)],
    "awq_w3": [("awq", W3)],
    "lwc_w3": [("lwc", {**W3, **_SHORT})],
    "autoround_w3": [("autoround", {**W3, **_SHORT})],
    "lsq_w4": [("lsq", {**W4, **_SHORT})],
    "rtn_w8a8": [("smoothquant", {"alpha": 0.0})],
    "smoothquant_w8a8": [("smoothquant", {})],
    "kd_logits": [("kd_logits", _STUDENT)],
    "kd_hidden": [("kd_hidden", _STUDENT)],
    "kd_text": [("kd_text", {**_STUDENT, "count": 32})],
    "wanda_2_4_gptq_w4": [("wanda_2_4", {}), ("gptq", W4)],
    "gptq_w4_wanda_2_4": [("gptq", W4), ("wanda_2_4", {})],
    "kd_logits_gptq_w4": [("kd_logits", _STUDENT), ("gptq", W4)],
}
