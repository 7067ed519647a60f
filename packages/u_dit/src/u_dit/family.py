"""U-DiT and DiT, as the commands that they share with other papers know them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from papers_shared import assets
from papers_shared.diffusion.class_family import ClassFamily
from u_dit.dit import DIT_VARIANTS
from u_dit.model import VARIANTS, Config, UDiT, build, fuse
from u_dit.official import CHECKPOINTS, load_official

M = TypeVar("M", bound=nn.Module)


def recognise(state: Mapping[str, Tensor]) -> str:
    """The variant whose names and shapes a state dict has; '' if there are none or several."""
    width = state.get("x_embedder.proj.weight")
    # Widths first: building every variant would take seconds.
    fitting = [
        name
        for name, config in VARIANTS.items()
        if width is not None and width.shape[0] == config.hidden_size and _fits(state, config)
    ]
    return fitting[0] if len(fitting) == 1 else ""


def _fits(state: Mapping[str, Tensor], config: Config) -> bool:
    with torch.device("meta"):
        own = build(config).state_dict()
    return {n: v.shape for n, v in own.items()} == {n: v.shape for n, v in state.items()}


def find(name: str) -> tuple[Path, str] | None:
    """File and variant of a released checkpoint's name; the file is never downloaded."""
    if name not in CHECKPOINTS:
        return None
    released = CHECKPOINTS[name]
    return assets.fetch(released.asset).path, released.variant


def merge(network: M) -> M:
    """A copy with merged feed-forward nets; a DiT, which has none, as it is."""
    return fuse(network) if isinstance(network, UDiT) else network


def as_model(network: Any) -> Any:
    """See ``pipeline.as_model``, which needs diffusers."""
    from u_dit.pipeline import as_model as make

    return make(network)


FAMILY = ClassFamily(
    package="u_dit",
    variants={**VARIANTS, **DIT_VARIANTS},
    build=build,
    load_official=load_official,
    merge=merge,
    as_model=as_model,
    recognise=recognise,
    shipped="cifar10_mini",
    released="the authors' are at huggingface.co/yuchuantian/U-DiT",
    find=find,
)
