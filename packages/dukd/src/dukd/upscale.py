"""``dukd upscale photo.png -o large.png``."""

from __future__ import annotations

from dukd.config import EnlargeConfig
from dukd.family import FAMILY
from papers_shared.restoration.restore import run_restore


def main(config: EnlargeConfig) -> int:
    """Enlarge photos; the exit status is 1 when one of several failed."""
    return run_restore(config, FAMILY, "sr")
