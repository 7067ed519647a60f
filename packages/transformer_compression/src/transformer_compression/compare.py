"""``transformer-compression compare``: every method that applies to a model, in one table."""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from papers_shared.checkpoints import atomic_path
from papers_shared.devices import pick_device
from transformer_compression.bench import Protocol, Row, Steps, measure_row
from transformer_compression.compressing import compress
from transformer_compression.config import CompareConfig
from transformer_compression.figures import plot
from transformer_compression.measure import disk_bytes, measure_cost, vision_quality
from transformer_compression.methods import METHODS, find_method
from transformer_compression.models import Loaded, load_model, vision_data
from transformer_compression.train import parse_options

COLUMNS = {
    "perplexity": ("perplexity", 2),
    "accuracy": ("right %", 1),
    "top1": ("top-1 %", 2),
    "parameters": ("parameters M", 2),
    "nonzero": ("not zero M", 2),
    "bytes": ("MB by rule", 2),
    "disk": ("MB on disk", 2),
    "macs": ("MACs M", 1),
    "forward_ms": ("pass ms", 1),
    "speedup": ("x dense", 2),
    "step_ms": ("token ms", 1),
    "step_speedup": ("x dense, generating", 2),
    "weights": ("weights MB", 1),
    "peak": ("peak MB", 1),
    "seconds": ("seconds", 1),
}
QUALITY = ("perplexity", "top1")


def chosen_steps(names: Sequence[str], domain: str) -> dict[str, Steps]:
    """Row name -> steps; without names every method that ``compare`` runs on this kind of model.

    Args:
        names: ``NAME`` or ``NAME:option=value,option=value``.
        domain: of the model.

    Raises:
        ValueError: an unknown method or option, or one that does not work on this kind of model.
    """
    if not names:
        fitting = [m for m in METHODS.values() if domain in m.domains and m.compare]
        return {"dense": (), **{m.name: [(m.name, {})] for m in fitting}}
    rows: dict[str, Steps] = {"dense": ()}
    for text in names:
        name, _, options = text.partition(":")
        method = find_method(name)
        if domain not in method.domains:
            raise ValueError(
                f"{name} works on {' and '.join(method.domains)} models, not on {domain} models"
            )
        given = parse_options([pair for pair in options.split(",") if pair])
        if unknown := sorted(set(given) - set(method.options)):
            known = ", ".join(method.options) or "none"
            raise ValueError(f"{name} has no option {unknown[0]!r}; it has {known}")
        rows[text] = [(name, given)]
    return rows


def vision_row(dense: Loaded, steps: Steps, config: CompareConfig, workdir: Path) -> Row:
    """Compress a copy of a vision transformer and measure it beside the dense one."""
    model, report = copy.deepcopy(dense.model), None
    if steps:
        data = vision_data(dense, pictures=config.calibration_pictures, seed=config.seed)
        (name, options) = steps[0]
        model, report = compress(model, name, data, **options)
    model.eval()
    quality = vision_quality(model, pictures=config.pictures)
    reference = None if report is None else dense.model
    cost = measure_cost(model, language=False, reference=reference)
    count = sum(p.numel() for p in model.parameters())
    values = {
        **quality,
        "parameters": count / 1e6,
        "nonzero": (count if report is None else report.nonzero) / 1e6,
        "bytes": (2 * count if report is None else report.bytes) / 1e6,
        "disk": disk_bytes(model, report, workdir) / 1e6,
        "macs": cost.macs / 1e6,
        "forward_ms": 1e3 * cost.forward,
        "speedup": cost.speedup,
        "weights": cost.weights / 1e6,
        "peak": cost.peak / 1e6,
        "seconds": 0.0 if report is None else sum(report.cpu_seconds),
    }
    return Row(values, report=report)


def markdown(rows: Mapping[str, Row]) -> str:
    """The rows as a Markdown table; columns that none has are left out."""
    names = [name for name in COLUMNS if any(name in row.values for row in rows.values())]
    head = "| method | " + " | ".join(COLUMNS[name][0] for name in names) + " |"
    lines = [head, "|---|" + "---|" * len(names)]
    for label, row in rows.items():
        cells = [f"{row.values[n]:.{COLUMNS[n][1]}f}" if n in row.values else "" for n in names]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(config: CompareConfig) -> int:
    """Measure all rows, print the table, and write table, data and plots.

    ``table.json`` grows row by row, so that an interrupted run keeps what it measured. A method
    that fails on this model, whatever the error, is named with it; the others go on.

    Raises:
        Exception: the dense model could not be measured.
    """
    dense = load_model(config.model, device=pick_device(config.device))
    wanted = chosen_steps(config.method, dense.domain)
    protocol = Protocol(
        calibration_windows=config.calibration_windows,
        calibration_length=config.calibration_length,
        window=config.window,
        windows=config.windows,
        questions=config.questions if config.evaluation is None else 0,
        seed=config.seed,
        text=config.text,
        evaluation=config.evaluation,
    )
    rows: dict[str, Row] = {}
    failed: dict[str, str] = {}
    config.output.mkdir(parents=True, exist_ok=True)
    for name, steps in wanted.items():
        print(f"{name} ({len(rows) + len(failed) + 1} of {len(wanted)})", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            try:
                if dense.domain == "language":
                    rows[name] = measure_row(dense, steps, protocol, Path(folder))
                else:
                    rows[name] = vision_row(dense, steps, config, Path(folder))
            except Exception as error:
                if not steps:
                    raise
                failed[name] = f"{type(error).__name__}: {error}"
        values = {label: row.values for label, row in rows.items()}
        described: dict[str, Any] = {"model": config.model, "rows": values, "failed": failed}
        _write(config.output / "table.json", json.dumps(described, indent=2))
    table = markdown(rows)
    print(table)
    for name, why in failed.items():
        print(f"{name} failed: {why}")
    _write(config.output / "table.md", table)
    quality = next(name for name in QUALITY if name in values["dense"])
    plots = plot(
        values,
        config.output,
        title=config.model,
        quality=(quality, COLUMNS[quality][0]),
        axes={"bytes": "MB by rule", "forward_ms": "milliseconds a pass"},
    )
    files = [config.output / "table.md", config.output / "table.json", *plots]
    print(f"written: {', '.join(str(path) for path in files)}")
    return 0


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
