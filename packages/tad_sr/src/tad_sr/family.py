"""TAD-SR's networks, as the commands that it shares with other papers know them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from papers_shared.diffusion import families
from papers_shared.diffusion.families import Family
from papers_shared.diffusion.scheduler import CAP
from tad_sr.model import VARIANTS
from tad_sr.official import LAYOUT
from tad_sr.pipeline import TADSRPipeline, UNetModelSwinModel

# Arguments of ResShiftScheduler of the students: one step from T-1, or as many as one likes.
STUDENT = {"sqrt_eta_start_cap": CAP, "timestep_spacing": "trailing"}
SCHEDULERS: Mapping[str, Mapping[str, Any]] = {
    "realsr": STUDENT,
    "faceir": {**STUDENT, "num_train_timesteps": 4, "min_noise_level": 0.2, "scale_factor": 1},
    "small": {**STUDENT, "prediction_type": "residual"},
}

FAMILY = Family(
    package="tad_sr",
    pipeline=TADSRPipeline,
    model=UNetModelSwinModel,
    variants=VARIANTS,
    schedulers=SCHEDULERS,
    layout=LAYOUT,
    released=(
        "the authors' weights (TAD-SR.pth, Apache-2.0 on code under S-Lab's non-commercial "
        "licence) are linked at github.com/LearningHx/TAD-SR: tad-sr upscale PHOTO "
        "--weights TAD-SR.pth --autoencoder autoencoder_vq_f4.pth"
    ),
)


def load_pipeline(weights: str = "small", *, variant: str = "", autoencoder: str = "") -> Any:
    """The pipeline of a file of weights; see ``papers_shared.diffusion.families.load_pipeline``."""
    return families.load_pipeline(FAMILY, weights, variant=variant, autoencoder=autoencoder)
