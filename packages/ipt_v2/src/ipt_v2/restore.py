"""``ipt-v2 denoise photo.png -o clean.png``, ``ipt-v2 restore photo.png --weights FILE``."""

from __future__ import annotations

from ipt_v2.config import AnyTaskConfig, DenoiseConfig
from ipt_v2.family import FAMILY, in_regime
from papers_shared.restoration.prepare import open_restorer
from papers_shared.restoration.restore import run_restore


def denoise(config: DenoiseConfig) -> int:
    """Denoise photos; the exit status is 1 when one of several failed."""
    return run_restore(config, in_regime(config.regime), "denoise")


def main(config: AnyTaskConfig) -> int:
    """Undo what the weights are made for; the exit status is 1 when one of several failed.

    Raises:
        ValueError: no weights, or weights that are made for another task or do not tell it.
    """
    if not config.weights:
        configs = "deraining_rain13k, deblurring_gopro, real_denoising_sidd"
        raise ValueError(
            f"restore needs --weights, a file that train wrote; {FAMILY.released}, and the only "
            f"network that ships is denoise's. Recipes for train --config: {configs}"
        )
    kind = config.task
    if kind is None:
        kind = open_restorer(FAMILY, config.weights, variant=config.variant).task.kind
    return run_restore(config, in_regime(config.regime), kind)
