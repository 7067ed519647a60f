"""The networks of this package as the commands that it shares with other papers know them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dukd.model import VARIANTS, WINDOW, Config, build
from dukd.official import convert, guess_config, load_official
from papers_shared.checkpoints import load_strict
from papers_shared.restoration.family import RestorationFamily, Restorer
from papers_shared.restoration.family import load_restorer as load_shared
from papers_shared.restoration.task import Task

PROBE = 32  # side of the picture that tells a user's network's scale


class Networks(dict[str, Config]):
    """``VARIANTS``, and by ``module:Class`` or ``ARCH(...)`` any other network."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (
            isinstance(name, str) and (":" in name or "(" in name)
        )

    def __missing__(self, name: str) -> Config:
        config = Config.parse(name)
        return config if config.upscale else replace(config, upscale=_scale_of(config))


def _scale_of(config: Config) -> int:
    with torch.no_grad():
        made = build(config).eval()(torch.full((1, 3, PROBE, PROBE), 0.5))
    return made.shape[-1] // PROBE


def for_task(config: Config, task: Task) -> Config:
    """The network of ``config`` for another scale; RGB alone.

    Raises:
        ValueError: another task, or grey pictures.
    """
    if task.kind != "sr" or task.channels != 3:
        raise ValueError(f"these networks enlarge RGB pictures; {task} is another task")
    return replace(config, upscale=task.scale)


def load(state: Mapping[str, Tensor], config: Config) -> Any:
    """A network with these weights, in eval mode."""
    if ":" not in config.arch:
        return load_official(state, config, implementation="own")
    network = build(config)
    load_strict(network, state, what="the file")
    return network.eval()


def recognise(state: Mapping[str, Tensor]) -> Config | None:
    """The network that a state dict belongs to; None if it is neither EDSR, RCAN nor SwinIR."""
    return guess_config(convert(state))


FAMILY = RestorationFamily(
    package="dukd",
    variants=Networks(VARIANTS),
    # basicsr takes seconds to import, its networks' own form none.
    build=partial(build, implementation="own"),
    load_official=load,
    for_task=for_task,
    merge=lambda network: network,  # nothing to merge
    merged=lambda config: config,
    recognise=recognise,
    value_range=1,
    multiple=WINDOW,
    overlap=32,
    shipped={"sr": "mini_x2"},
    released="the authors have released no student",
)


def load_restorer(weights: str = "mini_x2", *, variant: str = "", task: Task | None = None) -> Any:
    """The network of a file of weights; see ``papers_shared.restoration.family.load_restorer``."""
    restorer: Restorer = load_shared(FAMILY, weights, variant=variant, task=task)
    return restorer
