"""From a name to a teacher: published networks, the paper's with a file of weights, the user's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dukd.model import VARIANTS, Config, build, reflected
from dukd.official import load_official
from papers_shared import networks
from papers_shared.checkpoints import load_file, load_state_dict, load_strict
from papers_shared.networks.attention import ESA

SMALLEST_ESA = 15  # pixels a side: its strided convolution and pooling leave nothing of less


class Padded(nn.Module):
    """A network for pictures smaller than it can take: mirrored up to ``minimum``, cropped again.

    Args:
        network: enlarges ``scale`` times.
        scale: of the enlargement.
        minimum: side of its smallest input.
    """

    def __init__(self, network: nn.Module, *, scale: int, minimum: int) -> None:
        super().__init__()
        self.network, self.scale, self.minimum = network, scale, minimum

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, s * H, s * W)."""
        height, width = (side * self.scale for side in x.shape[-2:])
        return self.network(reflected(x, minimum=self.minimum))[..., :height, :width]


def load_teacher(name: str, *, weights: str = "", key: str | None = None) -> nn.Module:
    """A trained network, in eval mode, frozen; RGB in [0, 1] in and out.

    Args:
        name: a published network (``papers_shared.networks``: rlfn_x4 and others), one of the
            paper's (``VARIANTS``), which need ``weights``, or ``module:Class``.
        weights: a file; of the paper's networks in any of their authors' layouts.
        key: entry of the file that holds the state dict (``params``); None: averaged weights first.

    Raises:
        ValueError: an unknown name, or weights that do not fit.
        FileNotFoundError: the weights are not here; says where they are had.
    """
    if name in networks.NETWORKS:
        resolver = networks.load(name, path=weights or None)
        if any(isinstance(module, ESA) for module in resolver.modules()):
            return Padded(resolver, scale=resolver.scale, minimum=SMALLEST_ESA).eval()
        return resolver
    if name not in VARIANTS and ":" not in name:
        known = ", ".join([*networks.NETWORKS, *VARIANTS])
        raise ValueError(f"no network is called {name!r}; module:Class, or one of {known}")
    if not weights:
        raise FileNotFoundError(
            f"{name} needs a file of trained weights, --teacher-weights FILE"
            + ("" if ":" in name else "; the README says where the authors' are had")
        )
    if ":" in name:
        network = build(Config(name, 0))
        load_strict(network, load_state_dict(weights, key=key), what=weights)
    else:
        network = load_official(load_file(weights), VARIANTS[name], key=key)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def check_pair(
    teacher: nn.Module | None, student: nn.Module, *, scale: int, patch: int, zoom_out: bool
) -> None:
    """Try both networks on one grey patch, and the reduced one, before anything is trained.

    Args:
        teacher: None where the method has none.
        student: as it will be trained.
        scale: of the data.
        patch: side of the low-resolution patches.
        zoom_out: whether reduced patches will come.

    Raises:
        ValueError: a network fails on them, or enlarges by another scale.
    """
    if zoom_out and patch % scale:
        raise ValueError(f"zoom-out needs a patch that is a multiple of {scale}, not {patch}")
    for who, network in (("teacher", teacher), ("student", student)):
        if network is None:
            continue
        training = network.training
        network.eval()
        try:
            for side in (patch, patch // scale)[: 1 + zoom_out]:
                try:
                    made = tuple(network(torch.full((1, 3, side, side), 0.5)).shape)
                except (RuntimeError, IndexError, AttributeError, TypeError) as error:
                    raise ValueError(
                        f"the {who} cannot take a picture of {side}x{side} pixels ({error}); "
                        "make --patch larger" + (", or leave out --zoom-out" if zoom_out else "")
                    ) from None
                wanted = (1, 3, side * scale, side * scale)
                if made != wanted:
                    raise ValueError(
                        f"the {who} makes {made} of a {side}x{side} picture, expected {wanted}: "
                        f"the data, teacher and student must all have scale {scale}"
                    )
        finally:
            network.train(training)
