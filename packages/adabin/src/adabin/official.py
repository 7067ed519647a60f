"""The authors' checkpoints: which exist, and how their state dicts become our networks.

One was released: ResNet-20 on CIFAR-10 (asset ``adabin_resnet20_cifar10``, MIT). Our module
names are the authors', so only DataParallel's prefix has to go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from adabin.model import VARIANTS, Config, build
from papers_shared import assets
from papers_shared.checkpoints import load_state_dict, load_strict, unwrap

CHECKPOINTS = {"cifar10_resnet20": "adabin_resnet20_cifar10"}


def load_official(
    state_dict: Mapping[str, Tensor], config: Config | Mapping[str, Any]
) -> nn.Module:
    """A network with the weights of a state dict in the authors' layout, in eval mode.

    Args:
        state_dict: names to tensors, with or without ``module.``; all must fit.
        config: which network it is.

    Raises:
        ValueError: names are missing, unexpected or of another shape, or the layers are those of
            another method (IR-Net's and ReCU's networks have the same skeleton).
    """
    state = unwrap(state_dict)
    refuse_other_layers(state)
    model = build(config)
    load_strict(model, state, what="the checkpoint")
    return model.eval()


def refuse_other_layers(state: Mapping[str, Tensor]) -> None:
    """Tell the checkpoints of other binary networks by what they lack.

    Raises:
        ValueError: no layer has an activation set.
    """
    if not any("binary_a" in name for name in state):
        raise ValueError(
            "the checkpoint has no 'binary_a' entries: its layers are not AdaBin's (IR-Net, ReCU "
            "and plain ResNets share the skeleton); give a checkpoint of an AdaBin network"
        )


def load_released(variant: str = "cifar10_resnet20", *, path: str | None = None) -> nn.Module:
    """The authors' released network, its file found by name and verified by checksum.

    Raises:
        ValueError: none was released for this variant.
        FileNotFoundError: the file is nowhere; the message says how to get it.
    """
    if variant not in CHECKPOINTS:
        raise ValueError(
            f"the authors released no checkpoint of {variant}; there is one of "
            f"{', '.join(CHECKPOINTS)}, others come from `adabin train`"
        )
    file = assets.fetch(CHECKPOINTS[variant], path=path).path
    return load_official(load_state_dict(file), VARIANTS[variant])
