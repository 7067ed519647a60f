"""State dicts of EDSR, RCAN and SwinIR as their authors and basicsr write them.

Source: dukd sheet 3.2, 3.4, 3.5 and 8.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dukd.model import Config, Implementation, build
from papers_shared.checkpoints import load_strict, unwrap

RECOMPUTED = ("attn_mask", "relative_position_index")  # of SwinIR, for the img_size of training
_MEAN_SHIFTS = ("sub_mean.", "add_mean.")


def convert(checkpoint: Mapping[str, Any], *, key: str | None = None) -> dict[str, Tensor]:
    """A state dict in basicsr's layout, whatever it came in.

    Args:
        checkpoint: basicsr's file (``params``, ``params_ema``), a bare state dict, with or without
            ``module.``, or the original layouts of EDSR and RCAN. Their mean shifts are left out:
            basicsr's networks have the mean built in.
        key: the entry that holds the state dict; None: averaged weights first.

    Raises:
        ValueError: there is no state dict in it.
    """
    state = unwrap(checkpoint, key=key)
    body = {int(m[1]) for name in state if (m := re.match(r"body\.(\d+)\.", name))}
    if "head.0.weight" not in state or not body:
        return state
    last = max(body)
    blocks = len({m[1] for name in state if (m := re.match(r"body\.0\.body\.(\d+)\.", name))})
    rcan = any(".conv_du." in name for name in state)
    out = {}
    for name, value in state.items():
        if not name.startswith(_MEAN_SHIFTS):
            out[_renamed(name, last=last, group_conv=blocks - 1 if rcan else None)] = value
    return out


def _renamed(name: str, *, last: int, group_conv: int | None) -> str:
    """An original name as basicsr has it; ``last``: of the body, the convolution behind it."""
    name = name.replace("head.0.", "conv_first.").replace("tail.1.", "conv_last.")
    name = re.sub(r"^tail\.0\.", "upsample.", name)
    name = re.sub(rf"^body\.{last}\.(weight|bias)$", r"conv_after_body.\1", name)
    if group_conv is None:
        name = re.sub(r"^(body\.\d+)\.body\.0\.", r"\1.conv1.", name)
        return re.sub(r"^(body\.\d+)\.body\.2\.", r"\1.conv2.", name)
    name = re.sub(rf"^(body\.\d+)\.body\.{group_conv}\.(weight|bias)$", r"\1.conv.\2", name)
    name = re.sub(
        r"^(body\.\d+)\.body\.(\d+)\.body\.3\.conv_du\.0\.",
        r"\1.residual_group.\2.rcab.3.attention.1.",
        name,
    )
    name = re.sub(
        r"^(body\.\d+)\.body\.(\d+)\.body\.3\.conv_du\.2\.",
        r"\1.residual_group.\2.rcab.3.attention.3.",
        name,
    )
    return re.sub(r"^(body\.\d+)\.body\.(\d+)\.body\.", r"\1.residual_group.\2.rcab.", name)


def load_official(
    state_dict: Mapping[str, Any],
    config: Config | Mapping[str, Any] | None = None,
    *,
    key: str | None = None,
    implementation: Implementation = "auto",
) -> nn.Module:
    """A network with the weights of a file, in eval mode.

    Args:
        state_dict: what the file holds, see ``convert``.
        config: which network; None: told by its shapes.
        key: see ``convert``.
        implementation: see ``build``.

    Raises:
        ValueError: names or shapes do not fit, or the network is not recognised.
    """
    state = convert(state_dict, key=key)
    if config is None:
        config = guess_config(state)
        if config is None:
            raise ValueError("neither an EDSR nor an RCAN nor a SwinIR; give its configuration")
    network = build(config, implementation=implementation)
    load_strict(network, _with_own_buffers(network, state), what="the checkpoint")
    return network.eval()


def _with_own_buffers(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """SwinIR's masks are of the size it was trained at: computed anew, whatever the file has."""
    own = network.state_dict()
    kept = {n: v for n, v in state.items() if n.rpartition(".")[2] not in RECOMPUTED}
    return kept | {n: v for n, v in own.items() if n.rpartition(".")[2] in RECOMPUTED}


def guess_config(state: Mapping[str, Tensor]) -> Config | None:
    """The network of a state dict in basicsr's layout; None if it is none of the three.

    Not in a state dict: EDSR's ``res_scale``, 0.1 of the 32 blocks of the paper's networks and 1
    else.
    """
    if "conv_first.weight" not in state:
        return None
    if "patch_embed.norm.weight" in state:
        return _guess_swinir(state)
    scale = _scale_by_upsampler(state)
    blocks = _count(state, r"body\.(\d+)\.")
    if not blocks or not scale or "conv_last.weight" not in state:
        return None
    width = len(state["conv_first.weight"])
    if "body.0.conv1.weight" in state:
        res_scale = 0.1 if blocks == 32 else 1.0
        return Config(
            "EDSR", scale, {"num_feat": width, "num_block": blocks, "res_scale": res_scale}
        )
    squeezed = state.get("body.0.residual_group.0.rcab.3.attention.1.weight")
    if squeezed is None:
        return None
    arguments = {
        "num_feat": width,
        "num_group": blocks,
        "num_block": _count(state, r"body\.0\.residual_group\.(\d+)\."),
        "squeeze_factor": width // len(squeezed),
    }
    return Config("RCAN", scale, arguments)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({m[1] for name in state if (m := re.match(pattern, name))})


def _scale_by_upsampler(state: Mapping[str, Tensor]) -> int | None:
    if (first := state.get("upsample.0.weight")) is None:
        return None
    if "upsample.2.weight" in state:
        return 4
    return math.isqrt(first.shape[0] // first.shape[1])


def _guess_swinir(state: Mapping[str, Tensor]) -> Config | None:
    width = len(state["conv_first.weight"])
    groups = _count(state, r"layers\.(\d+)\.")
    depths = [
        _count(state, rf"layers\.{i}\.residual_group\.blocks\.(\d+)\.") for i in range(groups)
    ]
    block = "layers.{}.residual_group.blocks.0."
    tables = [state[f"{block.format(i)}attn.relative_position_bias_table"] for i in range(groups)]
    window = (math.isqrt(len(tables[0])) + 1) // 2
    mask = state.get("layers.0.residual_group.blocks.1.attn_mask")
    scale: int | None
    if "conv_before_upsample.0.weight" in state and "conv_up1.weight" in state:
        upsampler, scale = "nearest+conv", 4
    elif "conv_before_upsample.0.weight" in state:
        upsampler, scale = "pixelshuffle", _scale_by_upsampler(state)
    elif "upsample.0.weight" in state:
        upsampler = "pixelshuffledirect"
        scale = math.isqrt(len(state["upsample.0.weight"]) // 3)
    else:
        upsampler, scale = "", 1
    arguments = {
        "img_size": 64 if mask is None else math.isqrt(len(mask)) * window,
        "in_chans": state["conv_first.weight"].shape[1],
        "window_size": window,
        "mlp_ratio": len(state[f"{block.format(0)}mlp.fc1.weight"]) / width,
        "img_range": 1.0,
        "embed_dim": width,
        "depths": depths,
        "num_heads": [table.shape[1] for table in tables],
        "upsampler": upsampler,
        "resi_connection": "3conv" if "layers.0.conv.0.weight" in state else "1conv",
    }
    return None if scale is None else Config("SwinIR", scale, arguments)


def init_from(
    network: nn.Module, checkpoint: Mapping[str, Any], *, key: str | None = None
) -> tuple[str, ...]:
    """Start from another scale's weights: what has the same name and shape.

    Of x2 into x4 all but ``upsample.2`` fits; into x3 ``upsample.0`` does not.

    Returns:
        the names that keep the network's own values, also written to the log.

    Raises:
        ValueError: nothing fits, or less than all outside the upsampler.
    """
    own = network.state_dict()
    state = _with_own_buffers(network, convert(checkpoint, key=key))
    taken = {n: v for n, v in state.items() if n in own and own[n].shape == v.shape}
    kept = tuple(name for name in own if name not in taken)
    if wrong := [name for name in kept if not name.startswith("upsample.")]:
        raise ValueError(
            f"{len(wrong)} entries outside the upsampler do not fit ({', '.join(wrong[:4])}): the "
            "weights belong to another network"
        )
    network.load_state_dict({**own, **taken})
    if kept:
        logging.getLogger(__name__).warning("not taken, so begun anew: %s", ", ".join(kept))
    return kept
