"""The authors' checkpoints: how their state dicts become our networks.

``realsr.pth`` and ``faceir.pth`` (github.com/kunncheng/DiT-SR, no licence stated; a Lite checkpoint
was never named). Our module names are the authors'; shift masks and position indices follow from
the configuration and are not taken from a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dit_sr.model import VARIANTS, Config, DiTSR, build
from papers_shared.diffusion.official import Layout

LAYOUT = Layout(
    build=build,
    variants=VARIANTS,
    foreign={
        ".in_layers.": "that of ResShift's U-net (ResShift, SinSR, TAD-SR): see tad-sr upscale",
        "quantize.embedding": "a VQ autoencoder's; it goes with the network, not in its place",
    },
)


def load_official(state_dict: Mapping[str, Tensor], config: Config | Mapping[str, Any]) -> DiTSR:
    """A network with the weights of a state dict in the authors' layout, in eval mode.

    Arguments and errors as of ``papers_shared.diffusion.official.Layout.load``.
    """
    return LAYOUT.load(state_dict, config)
