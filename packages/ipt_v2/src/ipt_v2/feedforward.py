"""Rep-LeFFN's merging in networks with focal attention; the nets are shared with U-DiT."""

from __future__ import annotations

import warnings
from typing import TypeVar

from torch import nn

from ipt_v2.attention import FCSA
from papers_shared.networks.rep_ffn import Mlp, RepLeFFN, merge_ffns

__all__ = ["Mlp", "RepLeFFN", "merge"]

M = TypeVar("M", bound=nn.Module)
SMALLEST_SCORE = 1e-3


def merge(network: M) -> M:
    """A copy for inference, every Rep-LeFFN merged; the network itself is left as it is.

    The copy computes the same (to rounding) with fewer parameters and operations. Its ``config``,
    where the network has one, is that of the merged form, so ``build`` makes a network that its
    state dict fits.

    Args:
        network: any module, or one Rep-LeFFN.

    Warns:
        UserWarning: an FCSA divides by scores that add up to almost nothing (``smallest_score``).
    """
    made = merge_ffns(network)
    for name, module in made.named_modules():
        if isinstance(module, FCSA) and (score := module.smallest_score()) < SMALLEST_SCORE:
            warnings.warn(
                f"{name}: the scores of its two branches add up to {score:.1e} at some position, "
                "so outputs there are unstable; train with a smaller learning rate",
                stacklevel=2,
            )
    if hasattr(made, "config"):
        made.config = made.config.merged()  # type: ignore[union-attr, operator]
    return made
