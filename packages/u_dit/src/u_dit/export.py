"""A trained network in a small form: ``u-dit export run/model_ema.safetensors -o small``."""

from __future__ import annotations

from papers_shared.diffusion.class_export import export
from papers_shared.diffusion.class_options import ClassExportConfig
from u_dit.family import FAMILY


def main(config: ClassExportConfig) -> int:
    """Write it, and say how large it is."""
    return export(config, FAMILY)
