"""The authors' checkpoints: which exist, and how their state dicts become our network.

Our names are the authors', so a state dict loads as it is; training files hold the averaged weights
under ``ema``. Nobody publishes checksums: see the catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from papers_shared.checkpoints import load_strict, unwrap
from papers_shared.diffusion.class_family import AVERAGED, load_network
from u_dit.dit import DiT, DiTConfig
from u_dit.model import Config, UDiT, build

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


def load_checkpoint(
    source: str | Path = "", *, variant: str = ""
) -> tuple[UDiT | DiT, dict[str, Any]]:
    """A network from a file, in eval mode, and what the file says of it.

    Args:
        source: a name of ``CHECKPOINTS`` (its file is looked for, never downloaded), a file in the
            authors' layout, one that ``u-dit train`` wrote, or '' for the one that ships.
        variant: which network it is, where neither the file nor its shapes say so.

    Returns, raises: as ``papers_shared.diffusion.class_family.load_network``.
    """
    from u_dit.family import FAMILY

    network, facts = load_network(FAMILY, source, variant=variant)
    assert isinstance(network, UDiT | DiT)
    return network, facts


def _weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    return unwrap(content, key=AVERAGED if isinstance(content.get(AVERAGED), Mapping) else None)
