"""LIPT's networks, as the commands that it shares with other papers know them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from lipt.hrm import merge
from lipt.model import VARIANTS, Config, build
from lipt.official import guess_config, load_official, read
from papers_shared.restoration.family import RestorationFamily, Restorer
from papers_shared.restoration.family import load_restorer as load_shared
from papers_shared.restoration.task import Task


def for_task(config: Config, task: Task) -> Config:
    """The network of ``config`` for another task: its scale and channels."""
    residual = config.residual and task.scale == 1
    return replace(config, scale=task.scale, colors=task.channels, residual=residual)


def recognise(state: Mapping[str, Tensor]) -> Config | None:
    """The network that a state dict belongs to; None if it is no LIPT's."""
    try:
        read(state)
    except ValueError:
        return None
    return guess_config(state)


FAMILY = RestorationFamily(
    package="lipt",
    variants=VARIANTS,
    build=build,
    load_official=load_official,
    for_task=for_task,
    merge=merge,
    merged=lambda config: replace(config, deploy=True),
    recognise=recognise,
    value_range=255,
    multiple=16,
    overlap=32,
    shipped={"sr": "mini_x4", "denoise": "mini_denoise_25", "dejpeg": "mini_jpeg_10"},
    released="the authors have released no weights of LIPT (asked for in their issue 2)",
)


def load_restorer(weights: str = "mini_x4", *, variant: str = "", task: Task | None = None) -> Any:
    """The network of a file of weights; see ``papers_shared.restoration.family.load_restorer``."""
    restorer: Restorer = load_shared(FAMILY, weights, variant=variant, task=task)
    return restorer
