"""The authors' checkpoints: which exist, and how their state dicts become our network.

ResShift's, SinSR's and TAD-SR's are of one network; they differ in the sampler (15 or 4 steps, or
one). Our module names are the authors'; shift masks and position indices follow from the
configuration and are not taken from a file. Nobody publishes checksums: see the catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from papers_shared import assets
from papers_shared.checkpoints import load_state_dict, load_strict, unwrap
from papers_shared.diffusion.swin_unet import UNetModelSwin, rebuild_buffers
from tad_sr.model import VARIANTS, Config, build


@dataclass(frozen=True)
class Checkpoint:
    """A released checkpoint.

    Attributes:
        asset: its name in the catalogue.
        variant: its network.
        one_step: made for one evaluation; else for the chain over all steps.
        capped: trained with the upper bound on the first sqrt(eta), ``scheduler.CAP``.
    """

    asset: str
    variant: str
    one_step: bool
    capped: bool = True


CHECKPOINTS: dict[str, Checkpoint] = {
    "tad_sr": Checkpoint("tad_sr_realsr", "realsr", one_step=True),
    "tad_sr_face": Checkpoint("tad_sr_faceir", "faceir", one_step=True),
    "sinsr": Checkpoint("sinsr_realsr_v1", "realsr", one_step=True),
    "resshift": Checkpoint("resshift_realsr_s15_v1", "realsr", one_step=False),
    "resshift_face": Checkpoint("resshift_faceir_s4", "faceir", one_step=False, capped=False),
}
AUTOENCODERS = {"realsr": "vq_f4_autoencoder", "faceir": "vq_f8_face_autoencoder"}
REBUILT = ("attn_mask", "relative_position_index")


def load_official(
    state_dict: Mapping[str, Tensor], config: Config | Mapping[str, Any]
) -> UNetModelSwin:
    """A network with the weights of a state dict in the authors' layout, in eval mode.

    Args:
        state_dict: names to tensors, with or without ``module.`` and ``_orig_mod.``; ``attn_mask``
            and ``relative_position_index`` may be absent or of another size, all else must fit.
        config: which network it is.

    Raises:
        ValueError: it is another network's or another variant's, which the message names; names
            are missing, unexpected or of another shape; or a weight is NaN or infinite.
    """
    # torch.compile leaves its mark inside names too, of the parts that were compiled.
    state = unwrap({name.replace("_orig_mod.", ""): v for name, v in unwrap(state_dict).items()})
    _refuse_other_networks(state)
    config = Config.of(config)
    _refuse_other_variants(state, config)
    broken = [n for n, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise ValueError(
            f"{len(broken)} entries of the checkpoint hold NaN or infinity ({broken[0]} first): "
            "the file is damaged or its training had diverged; get it again or take an earlier one"
        )
    model = build(config)
    load_strict(model, rebuild_buffers(model, state), what="the checkpoint")
    return model.eval()


def recognise(state: Mapping[str, Tensor]) -> str | None:
    """The variant whose names and shapes a state dict has, without prefixes; None: no variant."""
    given = _shapes(state)
    return next((name for name, config in VARIANTS.items() if _layout(config) == given), None)


def _layout(config: Config) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return _shapes(build(config).state_dict())


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {n: tuple(value.shape) for n, value in state.items() if not n.endswith(REBUILT)}


def _refuse_other_networks(state: Mapping[str, Tensor]) -> None:
    for mark, what in (
        ("adaLN_scale_msa", "a DiT-SR checkpoint; dit-sr upscale takes it"),
        ("quantize.embedding", "a VQ autoencoder's; it goes with the network, not in its place"),
        ("weight_orig", "a discriminator's; it serves training alone"),
    ):
        if any(mark in name for name in state):
            raise ValueError(f"the checkpoint is not ResShift's U-net but {what}")


def _refuse_other_variants(state: Mapping[str, Tensor], config: Config) -> None:
    if _shapes(state) == _layout(config):
        return
    if found := recognise(state):
        wanted = next(
            (name for name, known in VARIANTS.items() if known == config), "the given one"
        )
        raise ValueError(
            f"the checkpoint is of variant {found!r}, not {wanted!r}; choose variant {found!r}"
        )


def load_released(name: str = "tad_sr", *, path: str | None = None) -> UNetModelSwin:
    """A released network, its file found by name (it is never downloaded), in eval mode.

    Args:
        name: of ``CHECKPOINTS``.
        path: where the file is, or its folder; by default the mirrors and the cache.

    Raises:
        ValueError: there is no such checkpoint, or the file is another network's.
        FileNotFoundError: the file is nowhere; the message says how to get it.
    """
    if name not in CHECKPOINTS:
        raise ValueError(f"no released checkpoint {name!r}; known: {', '.join(CHECKPOINTS)}")
    checkpoint = CHECKPOINTS[name]
    file = assets.fetch(checkpoint.asset, path=path).path
    return load_official(load_state_dict(file), VARIANTS[checkpoint.variant])
