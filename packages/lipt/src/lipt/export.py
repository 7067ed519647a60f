"""``lipt export --weights FILE -o model.onnx``."""

from __future__ import annotations

from dataclasses import replace

from lipt.config import ExportConfig
from lipt.family import FAMILY
from papers_shared.restoration.export import run_export


def main(config: ExportConfig) -> int:
    """Write ONNX, checked against PyTorch; the x4 network where nothing is named."""
    if not config.weights and config.task is None:
        config = replace(config, task="sr")
    return run_export(config, FAMILY)
