"""Knowledge in feature maps: FAKD's affinities, attention transfer, FitNet, FSP, RKD.

Source: dukd sheet 4.5.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Position = str | int


def spatial_affinity(f: Tensor) -> Tensor:
    """SA: cosines between the positions' feature vectors; (B, C, H, W) -> (B, 1, HW, HW)."""
    f = f.flatten(2)
    f = f / (f.norm(dim=1, keepdim=True) + 1e-8)
    return (f.transpose(1, 2) @ f)[:, None]


def channel_affinity(f: Tensor) -> Tensor:
    """CA: cosines between the channels' maps; (B, C, H, W) -> (B, 1, C, C)."""
    f = f.flatten(2)
    f = f / (f.norm(dim=2, keepdim=True) + 1e-8)
    return (f @ f.transpose(1, 2))[:, None]


def instance_affinity(f: Tensor) -> Tensor:
    """IA: products between the items of the batch, rows normalised; (B, C, H, W) -> (B, B)."""
    f = f.flatten(1)
    products = f @ f.t()
    return products / products.norm(dim=1, keepdim=True)


def attention(f: Tensor) -> Tensor:
    """AT: the energy of each position, normalised over them; (B, C, H, W) -> (B, 1, H, W)."""
    energy = f.square().sum(1, keepdim=True)
    return energy / (energy.flatten(2).norm(dim=2)[..., None, None] + 1e-6)


def channel_mean(f: Tensor) -> Tensor:
    """FitNet without a regressor: the mean over channels; (B, C, H, W) -> (B, 1, H, W)."""
    return f.mean(1, keepdim=True)


def solution_flow(f1: Tensor, f2: Tensor) -> Tensor:
    """FSP: products between the channels of two maps; (B, C1, ..), (B, C2, ..) -> (B, C1, C2).

    The larger of two maps is pooled to the other's size.
    """
    if f1.shape[-2] > f2.shape[-2]:
        f1 = F.adaptive_avg_pool2d(f1, f2.shape[-2:])  # type: ignore[arg-type]
    elif f1.shape[-2] < f2.shape[-2]:
        f2 = F.adaptive_avg_pool2d(f2, f1.shape[-2:])  # type: ignore[arg-type]
    f1, f2 = f1.flatten(2), f2.flatten(2)
    return f1 @ f2.transpose(1, 2) / f1.shape[-1]


TRANSFORMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "SA": spatial_affinity,
    "CA": channel_affinity,
    "IA": instance_affinity,
    "AT": attention,
    "Fitnet": channel_mean,
}


def relational(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD between the items of a batch: 25 x distances + 50 x angles, Huber's loss.

    Distances between flattened maps are divided by their mean over the pairs; angles are cosines
    at each item between the other two. At least three items, for an angle.

    Source: dukd sheet 4.5, the general definition; the tables' setting is not known.
    """
    s, t = student.flatten(1), teacher.flatten(1).detach()

    def distances(x: Tensor) -> Tensor:
        squared = (x[:, None] - x[None]).square().sum(-1)
        d = (squared + torch.eye(len(x), device=x.device)).sqrt()  # no root of 0 on the diagonal
        d = d * (1 - torch.eye(len(x), device=x.device))
        return d / (d.sum() / (len(x) * (len(x) - 1))).clamp(min=1e-12)

    def angles(x: Tensor) -> Tensor:
        edges = F.normalize(x[None] - x[:, None], dim=2)
        return edges @ edges.transpose(1, 2)

    apart = F.smooth_l1_loss(distances(s), distances(t))
    return 25 * apart + 50 * F.smooth_l1_loss(angles(s), angles(t))


# ----------------------------------------------------------------------------- where maps are taken

# Class -> names of the maps that the paper's tables or, of RLFN, this project compares.
_POSITIONS: Mapping[str, Callable[[Any], list[Position]]] = {
    # 10 and 21 of 32 blocks, 2 and 6 of 10 groups, as the released options have them.
    "EDSR": lambda n: ["conv_first", len(n.body) // 3, 2 * len(n.body) // 3, "conv_after_body"],
    "RCAN": lambda n: ["conv_first", *_after_thirds(len(n.body)), "conv_after_body"],
    "RLFN": lambda n: ["conv_1", "block_2", "block_4", "conv_2"],
}


def _after_thirds(groups: int) -> list[Position]:
    return [max(0, round(part * groups / 3) - 1) for part in (1, 2)]


def default_positions(network: nn.Module) -> list[Position]:
    """Where the maps of a known network are taken.

    Raises:
        ValueError: the network is not known; its positions have to be named.
    """
    inner = inside(network)
    kind = type(inner).__name__
    if kind not in _POSITIONS:
        raise ValueError(
            f"no positions are known for the features of {kind}; name its modules, as many as the "
            f"other network's (known: {', '.join(_POSITIONS)})"
        )
    return _POSITIONS[kind](inner)


def inside(network: nn.Module) -> nn.Module:
    """The network without the wrappers of several processes and of padding."""
    while True:
        name = type(network).__name__
        if name in ("DistributedDataParallel", "DataParallel"):
            network = network.module  # type: ignore[assignment]
        elif name in ("SuperResolver", "Padded", "Restorer"):
            network = network.network  # type: ignore[assignment]
        else:
            return network


class Tap:
    """Collects the feature maps of a network's next forward pass.

    Args:
        network: any.
        positions: names of its modules; a number is that item of ``body``. To the output of
            ``conv_after_body`` (of RLFN: ``conv_2``) the first map is added, as in the released
            code, where the long skip is added in place after the map was stored.

    Raises:
        ValueError: there is no such module.
    """

    LONG_SKIP = ("conv_after_body", "conv_2")

    def __init__(self, network: nn.Module, positions: Sequence[Position]) -> None:
        inner = inside(network)
        self.names = [p if isinstance(p, str) else f"body.{p}" for p in positions]
        modules = dict(inner.named_modules())
        if missing := [name for name in self.names if name not in modules]:
            known = ", ".join(name for name in modules if name and name.count(".") < 2)
            raise ValueError(
                f"{type(inner).__name__} has no module {', '.join(missing)}; it has {known}"
            )
        self._maps: dict[str, Tensor] = {}
        for name in self.names:
            modules[name].register_forward_hook(self._keep(name))

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, made: Tensor) -> None:
            # A copy where the network's own skip is added in place (basicsr does).
            self._maps[name] = made.clone() if name in self.LONG_SKIP else made

        return hook

    def take(self) -> list[Tensor]:
        """The maps of the last forward pass, in the order of the positions; they are let go."""
        maps = [self._maps[name] for name in self.names]
        self._maps.clear()
        if self.names[-1] in self.LONG_SKIP and len(maps) > 1:
            maps[-1] = maps[-1] + maps[0]
        return maps


class FeatureLoss:
    """L1 between transformed maps of teacher and student, summed over the positions.

    Args:
        teacher: its maps are detached.
        student: any network.
        transform: a name of ``TRANSFORMS``, ``FSP`` (of each two maps in a row) or ``RKD``.
        weight: of the sum.
        positions: of the student's maps; None: known ones.
        teacher_positions: None: the same as ``positions`` if these are given, else known ones.

    Raises:
        ValueError: not as many maps, an unknown transform or module.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        transform: str,
        weight: float,
        positions: Sequence[Position] | None = None,
        teacher_positions: Sequence[Position] | None = None,
    ) -> None:
        if transform not in (*TRANSFORMS, "FSP", "RKD"):
            known = ", ".join([*TRANSFORMS, "FSP", "RKD"])
            raise ValueError(f"no transform of features is called {transform!r}; known: {known}")
        self.transform, self.weight = transform, weight
        mine = positions or default_positions(student)
        theirs = teacher_positions or positions or default_positions(teacher)
        if len(mine) != len(theirs):
            raise ValueError(f"{len(mine)} maps of the student, {len(theirs)} of the teacher")
        self._student, self._teacher = Tap(student, mine), Tap(teacher, theirs)

    def take(self, network: str) -> list[Tensor]:
        """The maps of the last forward pass of ``student`` or ``teacher``."""
        return (self._student if network == "student" else self._teacher).take()

    def __call__(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The weighted loss between maps that ``take`` gave."""
        teacher = [t.detach().float() for t in teacher]
        student = [s.float() for s in student]
        if self.transform == "RKD":
            pairs = zip(student, teacher, strict=True)
            return self.weight * torch.stack([relational(s, t) for s, t in pairs]).sum()
        if self.transform == "FSP":
            ours = [solution_flow(*two) for two in itertools.pairwise(student)]
            theirs = [solution_flow(*two) for two in itertools.pairwise(teacher)]
        else:
            ours = [TRANSFORMS[self.transform](s) for s in student]
            theirs = [TRANSFORMS[self.transform](t) for t in teacher]
        for s, t in zip(ours, theirs, strict=True):
            if s.shape != t.shape:
                raise ValueError(
                    f"{self.transform} compares maps of {tuple(s.shape)} and {tuple(t.shape)}: "
                    "teacher and student must agree there"
                )
        return self.weight * torch.stack(list(map(F.l1_loss, ours, theirs))).sum()
