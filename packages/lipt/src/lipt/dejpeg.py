"""``lipt dejpeg photo.jpg -o clean.png``."""

from __future__ import annotations

from lipt.config import RestoreConfig
from lipt.family import FAMILY
from papers_shared.restoration.restore import run_restore


def main(config: RestoreConfig) -> int:
    """Take out JPEG artifacts; the exit status is 1 when one of several photos failed."""
    return run_restore(config, FAMILY, "dejpeg")
