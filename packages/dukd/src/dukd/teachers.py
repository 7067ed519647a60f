"""From a name to a teacher: published networks, the paper's with weights, the user's own."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from dukd.model import Config, build, reflected
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


class CachedTeacher(nn.Module):
    """Keeps a teacher's answers, by the content of its inputs; for patches that come again.

    The teacher then runs once a patch, not once an update.

    Args:
        teacher: frozen, in eval mode.
        capacity: how many answers are kept; the first ones.

    Attributes:
        asked: patches that came.
        computed: those that the teacher was run on.
    """

    def __init__(self, teacher: nn.Module, *, capacity: int) -> None:
        super().__init__()
        self.teacher, self.capacity = teacher, capacity
        self.asked = self.computed = 0
        self._answers: dict[bytes, Tensor] = {}

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, s * H, s * W); kept as float16: 11 binary digits."""
        keys = [
            hashlib.blake2b(item.contiguous().numpy().tobytes(), digest_size=16).digest()
            for item in x.float().cpu()
        ]
        fresh = [i for i, key in enumerate(keys) if key not in self._answers]
        self.asked, self.computed = self.asked + len(keys), self.computed + len(fresh)
        made = dict(zip(fresh, self.teacher(x[fresh]).half(), strict=True)) if fresh else {}
        answers = [
            made[i] if i in made else self._answers[key].to(x.device) for i, key in enumerate(keys)
        ]
        for i in fresh[: max(0, self.capacity - len(self._answers))]:
            self._answers[keys[i]] = made[i].cpu()
        return torch.stack([answer.float() for answer in answers])


def answers_that_fit(pool: int, *, scale: int, patch: int, memory: int) -> tuple[int, int]:
    """How many answers a ``CachedTeacher`` can keep, and how many its patches have in all.

    Of every patch there are itself, its scale^2 cells and its reduction.

    Args:
        pool: patches.
        scale: of the enlargement.
        patch: side of the low-resolution patches.
        memory: bytes for the answers, of which none is counted as smaller than a patch's.
    """
    wanted = pool * (2 + scale**2)
    return min(wanted, memory // answer_bytes(scale=scale, patch=patch)), wanted


def answer_bytes(*, scale: int, patch: int) -> int:
    """Of a kept answer to one patch: RGB in float16."""
    return 3 * (scale * patch) ** 2 * torch.float16.itemsize


def load_teacher(
    name: str, *, weights: str = "", key: str | None = None, scale: int = 0
) -> nn.Module:
    """A trained network, in eval mode, frozen; RGB in [0, 1] in and out.

    Args:
        name: a published network (``papers_shared.networks``: rlfn_x4 and others), or whatever
            ``Config.parse`` takes, with ``weights``.
        weights: a file; of the paper's networks in any of their authors' layouts.
        key: entry of the file that holds the state dict (``params``); None: averaged weights first.
        scale: of a network whose name does not tell it.

    Raises:
        ValueError: an unknown name, or weights that do not fit.
        FileNotFoundError: the weights are not here; says where they are had.
    """
    if name in networks.NETWORKS:
        resolver = networks.load(name, path=weights or None)
        if any(isinstance(module, ESA) for module in resolver.modules()):
            return Padded(resolver, scale=resolver.scale, minimum=SMALLEST_ESA).eval()
        return resolver
    try:
        config = Config.parse(name, scale)
    except ValueError as error:
        known = ", ".join(networks.NETWORKS)
        raise ValueError(f"{error}; or a published one: {known}") from None
    if not weights:
        raise FileNotFoundError(
            f"{name} needs a file of trained weights, --teacher-weights FILE"
            + ("" if ":" in name else "; the README says where the authors' are had")
        )
    if ":" in name:
        network = build(config)
        load_strict(network, load_state_dict(weights, key=key), what=weights)
    else:
        network = load_official(load_file(weights), config, key=key)
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
