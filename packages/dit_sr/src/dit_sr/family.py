"""DiT-SR's networks, as the commands that it shares with other papers know them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_sr.model import VARIANTS
from dit_sr.official import LAYOUT
from dit_sr.pipeline import DiTSRModel, DiTSRPipeline
from papers_shared.diffusion import families
from papers_shared.diffusion.families import Family

# Arguments of ResShiftScheduler; DiT-SR's first eta has no cap.
SCHEDULERS: Mapping[str, Mapping[str, Any]] = {
    "realsr": {},
    "realsr_lite": {},
    "faceir": {"num_train_timesteps": 4, "min_noise_level": 0.2, "scale_factor": 1},
    "small": {"prediction_type": "residual"},
}

FAMILY = Family(
    package="dit_sr",
    pipeline=DiTSRPipeline,
    model=DiTSRModel,
    variants=VARIANTS,
    schedulers=SCHEDULERS,
    layout=LAYOUT,
    released=(
        "the authors' weights (realsr.pth, faceir.pth; no licence stated) are linked at "
        "github.com/kunncheng/DiT-SR: dit-sr upscale PHOTO --weights realsr.pth "
        "--autoencoder autoencoder_vq_f4.pth"
    ),
)


def load_pipeline(weights: str = "small", *, variant: str = "", autoencoder: str = "") -> Any:
    """The pipeline of a file of weights; see ``papers_shared.diffusion.families.load_pipeline``."""
    return families.load_pipeline(FAMILY, weights, variant=variant, autoencoder=autoencoder)
