"""``lipt denoise photo.png -o clean.png``."""

from __future__ import annotations

from lipt.config import RestoreConfig
from lipt.family import FAMILY
from papers_shared.restoration.restore import run_restore


def main(config: RestoreConfig) -> int:
    """Denoise photos; the exit status is 1 when one of several failed."""
    return run_restore(config, FAMILY, "denoise")
