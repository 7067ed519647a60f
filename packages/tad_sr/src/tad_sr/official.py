"""The authors' checkpoints: which exist, and how their state dicts become our network.

ResShift's, SinSR's and TAD-SR's are of one network; they differ in the sampler (15 or 4 steps, or
one). Our module names are the authors'; shift masks and position indices follow from the
configuration and are not taken from a file. Nobody publishes checksums: see the catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from papers_shared import assets
from papers_shared.checkpoints import load_state_dict
from papers_shared.diffusion.official import Layout
from papers_shared.diffusion.swin_unet import UNetModelSwin
from tad_sr.model import VARIANTS, Config, build


@dataclass(frozen=True)
class Checkpoint:
    """A released checkpoint.

    Attributes:
        asset: its name in the catalogue.
        variant: its network.
    """

    asset: str
    variant: str


# ResShift's are made for the chain over all steps, the others for one evaluation.
CHECKPOINTS: dict[str, Checkpoint] = {
    "tad_sr": Checkpoint("tad_sr_realsr", "realsr"),
    "tad_sr_face": Checkpoint("tad_sr_faceir", "faceir"),
    "sinsr": Checkpoint("sinsr_realsr_v1", "realsr"),
    "resshift": Checkpoint("resshift_realsr_s15_v1", "realsr"),
    "resshift_face": Checkpoint("resshift_faceir_s4", "faceir"),
}
LAYOUT = Layout(
    build=build,
    variants=VARIANTS,
    foreign={
        "adaLN_scale_msa": "a DiT-SR checkpoint; dit-sr upscale takes it",
        "quantize.embedding": "a VQ autoencoder's; it goes with the network, not in its place",
        "weight_orig": "a discriminator's; it serves training alone",
    },
)


def load_official(
    state_dict: Mapping[str, Tensor], config: Config | Mapping[str, Any]
) -> UNetModelSwin:
    """A network with the weights of a state dict in the authors' layout, in eval mode.

    Arguments and errors as of ``papers_shared.diffusion.official.Layout.load``.
    """
    return LAYOUT.load(state_dict, config)


def load_released(name: str = "tad_sr", *, path: str | None = None) -> UNetModelSwin:
    """A released network, its file found by name (it is never downloaded), in eval mode.

    Args:
        name: of ``CHECKPOINTS``.
        path: where the file is, or its folder; by default the mirrors and the cache.

    Raises:
        ValueError: there is no such checkpoint, or the file is another network's.
        FileNotFoundError: the file is nowhere; the message says how to get it.
    """
    if name not in CHECKPOINTS:
        raise ValueError(f"no released checkpoint {name!r}; known: {', '.join(CHECKPOINTS)}")
    checkpoint = CHECKPOINTS[name]
    file = assets.fetch(checkpoint.asset, path=path).path
    return load_official(load_state_dict(file), VARIANTS[checkpoint.variant])
