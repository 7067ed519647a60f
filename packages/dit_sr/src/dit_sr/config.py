"""The options of every command. No torch here: ``--help`` and errors answer at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from papers_shared.cli import option
from papers_shared.diffusion.commands import DenoiserConfig, EvalConfig, UpscaleConfig
from papers_shared.tables.command import ReproduceConfig

__all__ = ["EvalConfig", "ReproduceConfig", "TrainConfig", "UpscaleConfig"]


@dataclass(frozen=True)
class TrainConfig(DenoiserConfig):
    """Train DiT-SR by residual shifting (defaults: the authors' x4 recipe).

    Started again with the same output folder, it goes on from the newest checkpoint there.
    """

    prediction: Literal["sample", "residual"] = option(
        "sample", "what the network's output is: the clean latent, or its difference from z_y"
    )
    conditioning: Literal["adafm", "adaln", "adaln_zero", "none"] = option(
        "adafm", "how a block knows the step (ablation)"
    )
    mask: Literal["released", "swin"] = option(
        "released", "shift masks as in the authors' code, or Swin's (for new training)"
    )
