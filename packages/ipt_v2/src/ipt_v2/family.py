"""IPT-V2's restoration networks, as the commands that it shares with other papers know them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ipt_v2.feedforward import merge
from ipt_v2.model import IPTV2, VARIANTS, Config, Regime, build
from ipt_v2.official import load_official
from papers_shared.checkpoints import unwrap
from papers_shared.restoration.family import RestorationFamily, Restorer
from papers_shared.restoration.family import load_restorer as load_shared
from papers_shared.restoration.task import Task


def for_task(config: Config, task: Task) -> Config:
    """The network of ``config`` for another task: its channels.

    Raises:
        ValueError: super-resolution; the network's output has the size of its input.
    """
    if task.scale != 1:
        raise ValueError(
            f"IPT-V2's networks do not enlarge, and {task} does; tasks are denoise, dejpeg, "
            "derain, deblur and real_denoise"
        )
    return replace(config, in_channels=task.channels)


def recognise(state: Mapping[str, Tensor]) -> Config | None:
    """The variant that a state dict fits, in training or in merged form; None if it fits none.

    Shapes do not tell the cells of GGSA, so sizes other than the variants are not guessed.
    """
    shapes = {name: tuple(value.shape) for name, value in unwrap(state).items()}
    first = shapes.get("patch_embed.proj.weight", ())
    for config in VARIANTS.values():
        if first[:2] != (config.dim, config.in_channels):
            continue  # building a network only for its shapes takes a while
        for form in (config, config.merged()):
            with torch.device("meta"):
                own = build(form).state_dict()
            if shapes == {name: tuple(value.shape) for name, value in own.items()}:
                return form
    return None


FAMILY = RestorationFamily(
    package="ipt_v2",
    variants=VARIANTS,
    build=build,
    load_official=load_official,
    for_task=for_task,
    merge=merge,
    merged=Config.merged,
    recognise=recognise,
    value_range=1,
    multiple=64,
    overlap=64,
    shipped={"denoise": "mini_denoise_25"},
    released="the authors have released neither code nor weights of IPT-V2's restoration networks",
)


def in_regime(regime: Regime) -> RestorationFamily:
    """The family whose networks run in a regime of GGSA; see ``IPTV2.set_regime``."""

    def load(state: Mapping[str, Tensor], config: Config) -> IPTV2:
        network = load_official(state, config)
        network.set_regime(regime)
        return network

    return replace(FAMILY, load_official=load)


def load_restorer(
    weights: str = "mini_denoise_25", *, variant: str = "", task: Task | None = None
) -> Any:
    """The network of a file of weights; see ``papers_shared.restoration.family.load_restorer``."""
    restorer: Restorer = load_shared(FAMILY, weights, variant=variant, task=task)
    return restorer
