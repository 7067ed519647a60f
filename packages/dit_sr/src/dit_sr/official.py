"""The authors' checkpoints: how their state dicts become our networks.

``realsr.pth`` and ``faceir.pth`` (github.com/kunncheng/DiT-SR, no licence stated; a Lite checkpoint
was never named). Our module names are the authors'; shift masks and position indices follow from
the configuration and are not taken from a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dit_sr.model import Config, DiTSR, build
from papers_shared.checkpoints import load_strict, unwrap
from papers_shared.diffusion.swin_unet import rebuild_buffers


def load_official(state_dict: Mapping[str, Tensor], config: Config | Mapping[str, Any]) -> DiTSR:
    """A network with the weights of a state dict in the authors' layout, in eval mode.

    Args:
        state_dict: names to tensors, with or without ``module.`` and ``_orig_mod.``; ``attn_mask``
            and ``relative_position_index`` may be absent or of another size, all else must fit.
        config: which network it is.

    Raises:
        ValueError: names are missing, unexpected or of another shape, or it is ResShift's network.
    """
    state = unwrap(state_dict)
    if any(".in_layers." in name for name in state):
        raise ValueError(
            "the checkpoint is that of ResShift's U-net (ResShift, SinSR or TAD-SR), not DiT-SR's; "
            "tad-sr upscale takes it"
        )
    model = build(config)
    load_strict(model, rebuild_buffers(model, state), what="the checkpoint")
    return model.eval()
