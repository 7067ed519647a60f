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
from papers_shared import assets
from papers_shared.checkpoints import load_state_dict
from papers_shared.diffusion.official import Layout

CHECKPOINTS = {"realsr": "dit_sr_realsr", "faceir": "dit_sr_faceir"}
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


def load_released(name: str = "realsr", *, path: str | None = None) -> DiTSR:
    """A released network, its file found by name (it is never downloaded), in eval mode.

    Args:
        name: of ``CHECKPOINTS``, which is also its variant.
        path: where the file is, or its folder; by default the mirrors and the cache.

    Raises:
        ValueError: there is no such checkpoint, or the file is another network's.
        FileNotFoundError: the file is nowhere; the message says how to get it.
    """
    if name not in CHECKPOINTS:
        raise ValueError(f"no released checkpoint {name!r}; known: {', '.join(CHECKPOINTS)}")
    file = assets.fetch(CHECKPOINTS[name], path=path).path
    return load_official(load_state_dict(file), VARIANTS[name])
