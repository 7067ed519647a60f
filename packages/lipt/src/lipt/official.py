"""State dicts of the authors' code: three layouts, how they become our network and each other.

The authors have published no checkpoint (July 2025). Their code writes: ``train``, the branches;
``half_converted``, what their conversion leaves, HRM convolutions merged under ``.dbb_reparam`` and
batch norms kept, which their own network does not load; ``deploy``, what their network with
deploy=True loads. Module names are ours, too.

Source: lipt sheet 3.6, 3.8 and 8.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from lipt.hrm import fold_batch_norm, merge_branches, part
from lipt.model import LIPT, RGB_MEAN, Config, build
from papers_shared.checkpoints import load_strict, unwrap

LayoutName = Literal["train", "half_converted", "deploy"]
LAYOUTS: tuple[LayoutName, ...] = ("train", "half_converted", "deploy")  # each to later ones only
CONTAINER = "model_state_dict"  # in the authors' training files
REPARAM = ".dbb_reparam"


def read(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict in what a file holds, without wrappers and prefixes.

    Raises:
        ValueError: there is none, or it is not a LIPT's.
    """
    state = unwrap(checkpoint, key=CONTAINER if CONTAINER in checkpoint else None)
    if "head.0.weight" not in state or not any("modules_nvsm_sa" in name for name in state):
        raise ValueError(
            "the checkpoint is not a LIPT's: it has no head.0.weight or no modules_nvsm_sa; give "
            "a training, half-converted or deploy state dict of that network"
        )
    return state


def layout_of(state: Mapping[str, Tensor]) -> LayoutName:
    """Which layout a state dict, read by :func:`read`, is in."""
    if any(".dbb_origin." in name for name in state):
        return "train"
    if any(REPARAM in name for name in state):
        return "half_converted"
    # Batch norm alone: the training form of a network of plain convolutions.
    return "train" if any("project_inp.1." in name for name in state) else "deploy"


def convert(
    checkpoint: Mapping[str, Any], to: Literal["half_converted", "deploy"] = "deploy"
) -> dict[str, Tensor]:
    """Merge a state dict: all branches and, for ``deploy``, the batch norms of ``project_inp``.

    Args:
        checkpoint: in any layout that comes before ``to``, or in it; wrappers and prefixes go.
        to: the layout that is wanted.

    Returns:
        names to tensors, in the dtype of the given weights.

    Raises:
        ValueError: it is no LIPT, ``to`` is unknown, or merging would have to be undone.
    """
    state = read(checkpoint)
    if to not in LAYOUTS[1:]:
        raise ValueError(f"to={to!r}: expected half_converted or deploy")
    if LAYOUTS.index(given := layout_of(state)) > LAYOUTS.index(to):
        raise ValueError(f"a checkpoint in the layout {given!r} cannot become {to!r} again")
    mark = REPARAM if to == "half_converted" else ""
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        block, inside, _ = name.partition(".dbb_")
        projection, folded, _ = name.partition(".project_inp.")
        if inside and not name.startswith(block + REPARAM):
            if f"{block}{mark}.weight" not in out:
                kernel, bias = merge_branches(part(state, block))
                out |= {f"{block}{mark}.weight": kernel, f"{block}{mark}.bias": bias}
        elif folded and to == "deploy" and given != "deploy":
            prefix = f"{projection}.project_inp"
            if f"{prefix}.weight" not in out:
                weight, bias = fold_batch_norm(part(state, prefix))
                out |= {f"{prefix}.weight": weight, f"{prefix}.bias": bias}
        else:
            out[name.replace(REPARAM, mark)] = value
    return out


def guess_config(checkpoint: Mapping[str, Any], **overrides: Any) -> Config:
    """The configuration that a state dict belongs to.

    Window sizes are not in a state dict: 16 is assumed for a width of 144 (LIPT-Base), 8 else.
    Neither are the mask and other switches; they are the authors'.

    Args:
        checkpoint: in any layout.
        overrides: fields of ``Config`` that are known better.

    Raises:
        ValueError: it is no LIPT, or an override is not possible.
    """
    state = read(checkpoint)
    width, colors = state["head.0.weight"].shape[:2]
    blocks = {int(m[1]) for n in state if (m := re.match(r"body\.(\d+)\.", n))}
    shares = {int(m[1]) for n in state if (m := re.search(r"\.smmsa_(\d+)\.", n))}
    first = next(
        n for n in state if re.search(r"conv0(\.dbb_origin\.conv|\.dbb_reparam)?\.weight$", n)
    )
    layout, n_share = layout_of(state), max(shares)
    branches = "plain"
    if any(".dbb_origin." in name for name in state):
        branches = "hrm" if any(".dbb_sobelx." in name for name in state) else "dbb"
    guessed: dict[str, Any] = {
        "scale": math.isqrt(len(state["tail.0.weight"]) // colors),
        "colors": colors,
        "m_elan": len(blocks) * (1 + n_share),
        "c_elan": width,
        "n_share": n_share,
        "r_expand": len(state[first]) // width,
        "window_sizes": (16, 16) if width == 144 else (8, 8),
        "deploy": layout != "train",
        "branches": branches if layout == "train" else "hrm",
    }
    if "sub_mean.bias" in state:
        mean = -state["sub_mean.bias"].double().sum().item()
        guessed["rgb_range"] = round(mean / sum(RGB_MEAN), 3)
    return Config.of(guessed | overrides)


def load_official(
    checkpoint: Mapping[str, Any], config: Config | Mapping[str, Any] | None = None
) -> LIPT:
    """A network with the weights of a checkpoint of the authors' code, in eval mode.

    Args:
        checkpoint: what a file holds: a state dict in any layout, with or without ``module.`` and
            the wrapper of training files.
        config: which network it is; None: what ``guess_config`` says. Where it says deploy, or
            the checkpoint is merged at least in part, the network is the merged one.

    Raises:
        ValueError: names are missing, unexpected or of another shape.
    """
    state = read(checkpoint)
    config = guess_config(state) if config is None else Config.of(config)
    if config.deploy or layout_of(state) != "train":
        state, config = convert(state), replace(config, deploy=True)
    network = build(config)
    load_strict(network, state, what="the checkpoint")
    return network.eval()


def printed(mean: float, digits: int) -> float:
    """What the authors' training log prints of a mean over a data set: rounded upwards.

    Up to 0.01 dB (2 digits) or 0.0001 of SSIM (4 digits) too much, half of it on average.

    Source: lipt sheet 5, "Rounding trap".
    """
    return round(mean + 0.5 * 10**-digits, digits)
