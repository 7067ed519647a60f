"""What a user calls from Python: photos in, enlarged photos out, one evaluation each."""

from __future__ import annotations

from diffusers import ModelMixin  # noqa: F401  from_pretrained looks it up here to load the model

from papers_shared.diffusion.pipeline import ResShiftPipeline, as_diffusers_model
from tad_sr.model import Config, UNetModelSwin

UNetModelSwinModel = as_diffusers_model(UNetModelSwin, Config, module=__name__)


class TADSRPipeline(ResShiftPipeline):
    """The student with its autoencoder; see ``ResShiftPipeline``.

    A scheduler with ``timestep_spacing="trailing"`` makes it one step by default; with more
    steps, or the teacher's weights, it runs the teacher's chain.
    """
