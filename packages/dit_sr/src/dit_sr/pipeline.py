"""What a user calls from Python: photos in, enlarged photos out."""

from __future__ import annotations

from diffusers import ModelMixin  # noqa: F401  from_pretrained looks it up here to load the model

from dit_sr.model import Config, DiTSR
from papers_shared.diffusion.pipeline import ResShiftPipeline, as_diffusers_model

DiTSRModel = as_diffusers_model(DiTSR, Config, module=__name__)


class DiTSRPipeline(ResShiftPipeline):
    """DiT-SR with its autoencoder; see ``ResShiftPipeline``."""
