"""``tad-sr upscale photo.png -o out.png``."""

from __future__ import annotations

from papers_shared.diffusion.upscale import run_upscale
from tad_sr.config import UpscaleConfig
from tad_sr.family import FAMILY


def main(config: UpscaleConfig) -> int:
    """Enlarge photos; the exit status is 1 when one of several failed."""
    return run_upscale(config, FAMILY)
