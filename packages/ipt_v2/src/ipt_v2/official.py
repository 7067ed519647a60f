"""State dicts of the authors' layouts, and of ours.

No checkpoint of IPT-V2 was released. What can be loaded: state dicts of the file's IPT_UNet, those
of U-DiT's release (which is IPT_UNet with grid attention in both halves under other names), and
our restoration network's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast, overload

from torch import Tensor

from ipt_v2.generation import IPTUNet, UNetConfig
from ipt_v2.model import IPTV2, Config
from papers_shared.checkpoints import load_strict, unwrap

# Names of U-DiT's release -> names of the research file.
RELEASED = (
    (r"\.attn1\.", ".global_attn."),
    (r"\.attn2\.", ".local_attn."),
    (r"\.mlp1\.", ".global_mlp."),
    (r"\.mlp2\.", ".local_mlp."),
    (r"\.adaLN_modulation1\.", ".global_adaLN_modulation."),
    (r"\.adaLN_modulation2\.", ".local_adaLN_modulation."),
)


@overload
def load_official(state_dict: Mapping[str, Tensor], config: Config) -> IPTV2: ...
@overload
def load_official(state_dict: Mapping[str, Tensor], config: UNetConfig) -> IPTUNet: ...
@overload
def load_official(
    state_dict: Mapping[str, Tensor], config: Mapping[str, Any]
) -> IPTV2 | IPTUNet: ...
def load_official(
    state_dict: Mapping[str, Tensor], config: Config | UNetConfig | Mapping[str, Any]
) -> IPTV2 | IPTUNet:
    """A network with the weights of a state dict, in eval mode.

    Args:
        state_dict: names to tensors, with or without ``module.``; of the file's IPT_UNet, of a
            U-DiT release, or of our restoration network. All must fit.
        config: which network it is; a mapping with ``hidden_size`` or ``depth`` is a generation
            network's. A U-DiT has attn_seq (0, 0), before_attn "dwconv5", aug_shortcut, attn_type
            "v2" and posemb_type "rope2d".

    Raises:
        ValueError: names are missing, unexpected or of another shape, or a weight is NaN or
            infinite.
    """
    state = unwrap(state_dict)
    broken = [n for n, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise ValueError(
            f"{len(broken)} entries of the checkpoint hold NaN or infinity ({broken[0]} first): "
            "the file is damaged or its training had diverged"
        )
    model: IPTV2 | IPTUNet
    if is_generation(config):
        model = IPTUNet(cast(UNetConfig, config))
        state = from_release(state, shortcut=bool(model.config.aug_shortcut))
    else:
        model = IPTV2(cast(Config, config))
    load_strict(model, state, what="the checkpoint")
    return model.eval()


def is_generation(config: Config | UNetConfig | Mapping[str, Any]) -> bool:
    """Whether a configuration is a generation network's."""
    if isinstance(config, Config | UNetConfig):
        return isinstance(config, UNetConfig)
    return "hidden_size" in config or "depth" in config


def from_release(state: Mapping[str, Tensor], *, shortcut: bool) -> dict[str, Tensor]:
    """A state dict of U-DiT's release under the names of the file's IPT_UNet; others as they are.

    Args:
        state: names to tensors.
        shortcut: the downsampler is added to its input (``aug_shortcut``).

    Source: ipt_v2 sheet 8.
    """
    downsampler = ".before_attn.layer." if shortcut else ".before_attn."
    renamed = {}
    for name, value in state.items():
        new = name
        for old, replacement in RELEASED:
            new = re.sub(old, replacement, new)
        renamed[new.replace(".downsampler.layer.", downsampler)] = value
    return renamed
