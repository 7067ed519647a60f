"""What a user calls from Python: class labels in, pictures (or latents) out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from diffusers import ModelMixin  # noqa: F401  from_pretrained looks it up here

from papers_shared.diffusion.class_pipeline import (
    ClassPipeline,
    Sampler,
    load_class_pipeline,
    make_scheduler,
)
from papers_shared.diffusion.pipeline import as_diffusers_model
from u_dit.dit import DiT, DiTConfig
from u_dit.family import FAMILY
from u_dit.model import Config, UDiT

__all__ = ["DiTModel", "UDiTModel", "UDiTPipeline", "as_model", "load_pipeline", "make_scheduler"]

UDiTModel = as_diffusers_model(UDiT, Config, module=__name__)
DiTModel = as_diffusers_model(DiT, DiTConfig, module=__name__)


class UDiTPipeline(ClassPipeline):
    """``ClassPipeline`` of U-DiT and DiT: class labels to pictures, with the paper's sampler."""


def as_model(network: UDiT | DiT) -> Any:
    """A network as a diffusers model (which can be saved), sharing its weights."""
    kind = UDiTModel if isinstance(network, UDiT) else DiTModel
    with torch.device("meta"):
        model = kind(**network.options.to_dict())
    model.load_state_dict(network.state_dict(), assign=True)
    return model.eval().requires_grad_(False)


def load_pipeline(
    weights: str | Path = "",
    *,
    variant: str = "",
    vae: str | Path = "",
    sampler: Sampler | None = None,
    merge: bool = True,
) -> UDiTPipeline:
    """A pipeline from weights, on the CPU; the network that ships if none are named.

    Arguments and errors as of ``papers_shared.diffusion.class_pipeline.load_class_pipeline``.
    """
    made = load_class_pipeline(
        FAMILY,
        weights,
        variant=variant,
        vae=vae,
        sampler=sampler,
        merge=merge,
        pipeline=UDiTPipeline,
    )
    return cast(UDiTPipeline, made)
