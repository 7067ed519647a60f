"""The authors' checkpoints: which exist, and how their state dicts become our network.

Our names are the authors', so a state dict loads as it is; training files hold the averaged weights
under ``ema``. Nobody publishes checksums: see the catalogue.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from papers_shared import assets
from papers_shared.checkpoints import file_metadata, load_file, load_strict, unwrap
from u_dit.dit import DIT_VARIANTS, DiT, DiTConfig
from u_dit.model import VARIANTS, Config, UDiT, build

AVERAGED = "ema"
METADATA = "u_dit"  # what a file that training wrote says of its network


@dataclass(frozen=True)
class Checkpoint:
    """A released checkpoint: its name in the catalogue, and its network."""

    asset: str
    variant: str


CHECKPOINTS: dict[str, Checkpoint] = {
    f"{variant}-{steps}": Checkpoint(f"{variant.lower().replace('-', '_')}_{steps}", variant)
    for variant, steps in (
        ("U-DiT-S", "400k"),
        ("U-DiT-B", "400k"),
        ("U-DiT-L", "400k"),
        ("U-DiT-B", "1000k"),
        ("U-DiT-L", "1000k"),
    )
}


def load_official(
    state_dict: Mapping[str, Any], config: Config | DiTConfig | Mapping[str, Any]
) -> UDiT | DiT:
    """A network with the weights of a state dict in the authors' layout, in eval mode.

    Args:
        state_dict: names to tensors, with or without ``module.``; or what a training file of the
            authors holds, of which the averaged weights are taken. All must fit.
        config: which network it is, an entry of ``VARIANTS`` or a mapping.

    Raises:
        ValueError: names are missing, unexpected or of another shape, or a weight is NaN or
            infinite.
    """
    state = _weights(state_dict)
    if any("global_attn" in name for name in state):
        raise ValueError(
            "a state dict of the authors' research file (IPT_UNet), whose names differ; ipt_v2 "
            "reads it"
        )
    broken = [n for n, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise ValueError(
            f"{len(broken)} entries of the checkpoint hold NaN or infinity ({broken[0]} first): "
            "the file is damaged or its training had diverged"
        )
    model = build(config)
    load_strict(model, state, what="the checkpoint")
    return model.eval()


def load_checkpoint(source: str | Path, *, variant: str = "") -> tuple[UDiT | DiT, dict[str, Any]]:
    """A network from a file, in eval mode, and what the file says of it.

    Args:
        source: a name of ``CHECKPOINTS`` (its file is looked for, never downloaded), a file in the
            authors' layout, or one that ``u-dit train`` wrote.
        variant: which network it is, where neither the file nor its shapes say so.

    Returns:
        network, and ``{"config": ..., "data": "pixels" | "latents"}`` of a file of ours, else {}.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the variant is unknown or missing, or the file does not fit it.
    """
    if str(source) in CHECKPOINTS:
        released = CHECKPOINTS[str(source)]
        source, variant = assets.fetch(released.asset).path, released.variant
    said = file_metadata(source).get(METADATA)
    facts: dict[str, Any] = json.loads(said) if said else {}
    state = _weights(load_file(source))
    if facts:
        return load_official(state, facts["config"]), facts
    variants: dict[str, Config | DiTConfig] = {**VARIANTS, **DIT_VARIANTS}
    if not variant:
        fitting = [name for name, config in VARIANTS.items() if _same_shapes(state, config)]
        if len(fitting) != 1:
            raise ValueError(
                f"{source}: name its network with --variant ({', '.join(fitting or variants)})"
            )
        variant = fitting[0]
    if variant not in variants:
        raise ValueError(f"no variant {variant!r}; known: {', '.join(variants)}")
    return load_official(state, variants[variant]), facts


def _weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    return unwrap(content, key=AVERAGED if isinstance(content.get(AVERAGED), Mapping) else None)


def _same_shapes(state: Mapping[str, Tensor], config: Config) -> bool:
    import torch

    # Width, pairs and heads first: building every variant would take seconds.
    width = state.get("x_embedder.proj.weight")
    if width is None or width.shape[0] != config.hidden_size:
        return False
    with torch.device("meta"):
        own = build(config).state_dict()
    return {n: v.shape for n, v in own.items()} == {n: v.shape for n, v in state.items()}
