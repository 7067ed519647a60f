"""``ipt-v2 export --weights FILE -o model.onnx``."""

from __future__ import annotations

from ipt_v2.config import ExportConfig
from ipt_v2.family import FAMILY
from papers_shared.restoration.export import run_export


def main(config: ExportConfig) -> int:
    """Write ONNX, checked against PyTorch; cells as trained, whatever the size."""
    return run_export(config, FAMILY)
