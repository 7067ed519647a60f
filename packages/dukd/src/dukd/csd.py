"""CSD: contrastive self-distillation. The student is the teacher's first channels.

Wang et al., IJCAI 2021, arXiv 2105.11683. Needs VGG19's weights, and two networks that differ in
width alone (EDSR of 256 and of 64 channels); RCAN's attention and SwinIR's heads do not slice.

Source: dukd sheet 4.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dukd.distill import Distiller, Losses, scale_of
from papers_shared.checkpoints import load_state_dict, load_strict
from papers_shared.data.resize import imresize

LAYERS = (1, 6, 11, 20, 29)  # of VGG19's features, each after a ReLU
WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
Features = Callable[[Tensor], Sequence[Tensor]]


class WidthSlice(nn.Module):
    """A narrow network whose weights are the first channels of a wide one's.

    Args:
        wide: holds the weights; trained through this module.
        narrow: of the same names, no tensor larger; says the shapes, its weights are not used.

    Raises:
        ValueError: the names differ, or a shape does not fit.
    """

    def __init__(self, wide: nn.Module, narrow: nn.Module) -> None:
        super().__init__()
        self.wide = wide
        # Not a submodule: it has no weights of its own to train or to save.
        self._narrow = [narrow]
        large = dict(wide.named_parameters())
        self._shapes = {name: value.shape for name, value in narrow.named_parameters()}
        unfit = [
            name
            for name, shape in self._shapes.items()
            if name not in large
            or any(a > b for a, b in zip(shape, large[name].shape, strict=True))
        ]
        if unfit or len(large) != len(self._shapes):
            raise ValueError(
                f"the student is no slice of the teacher: {len(large)} and {len(self._shapes)} "
                f"parameters, not fitting: {', '.join(unfit[:4]) or '-'}; CSD needs two networks "
                "that differ in width alone"
            )

    def student_state(self) -> dict[str, Tensor]:
        """The narrow network's weights, as views of the wide one's."""
        large = dict(self.wide.named_parameters())
        return {
            name: large[name][tuple(slice(side) for side in shape)]
            for name, shape in self._shapes.items()
        }

    def forward(self, x: Tensor) -> Tensor:
        """What the narrow network makes of ``x``."""
        return torch.func.functional_call(self._narrow[0], self.student_state(), (x,))


class CSD(Distiller):
    """Teacher and slice trained together, with a contrastive loss on VGG19's features.

    L = |S - hr| + lambda_t |T - hr| + lambda_c sum_i w_i |f_i(T) - f_i(S)| / |f_i(N) - f_i(S)|

    N are bicubic enlargements of the batch's other pictures; T and N are detached.

    Args:
        teacher: the wide network; trained as well.
        student: a ``WidthSlice`` of it.
        features: RGB (B, 3, H, W) in [0, 1] -> the maps; see ``vgg19_features``.
        pixel_weight: of the first term.
        teacher_weight: lambda_t.
        contrastive_weight: lambda_c.

    Raises:
        ValueError: the student is no slice of the teacher.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        features: Features,
        pixel_weight: float = 1.0,
        teacher_weight: float = 1.0,
        contrastive_weight: float = 200.0,
    ) -> None:
        if not isinstance(student, WidthSlice) or student.wide is not teacher:
            raise ValueError("CSD's student is WidthSlice(teacher, narrow network)")
        super().__init__(None, student, pixel_weight=pixel_weight, kd_weight=0.0)
        self.teacher = teacher  # not frozen
        self.features = features
        self.teacher_weight, self.contrastive_weight = teacher_weight, contrastive_weight

    def stages(self, lr: Tensor, hr: Tensor) -> Iterator[Losses]:
        if len(lr) < 2:
            raise ValueError("CSD takes other pictures of the batch as negatives: 2 or more")
        assert self.teacher is not None
        out, wide = self._student(lr, hr), self.teacher(lr).float()
        negatives = imresize(lr, scale_of(lr, hr)).clamp(0, 1)
        yield {
            "pixel": self.pixel_weight * F.l1_loss(out, hr),
            "teacher": self.teacher_weight * F.l1_loss(wide, hr),
            "contrastive": self.contrastive_weight / 255 * self.contrast(out, wide, negatives),
        }

    def contrast(self, out: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
        """The contrastive sum; ``contrastive_weight`` is that of values in 0..255, hence / 255.

        Args:
            out, positive, negatives: (B, 3, H, W) in [0, 1]; an item's negatives are the others.
        """
        with torch.no_grad():
            theirs, others = self.features(positive), self.features(negatives)
        total = out.new_zeros(())
        for weight, s, t, n in zip(WEIGHTS, self.features(out), theirs, others, strict=True):
            apart = (n[None] - s[:, None]).abs()  # (B of s, B of n, C, H, W)
            own = torch.eye(len(s), device=s.device).view(len(s), len(s), 1, 1, 1)
            summed = (apart * (1 - own)).sum(1)
            total = total + weight * F.l1_loss(s, t) / (summed.mean() + 1e-7)
        return total


def vgg19_features(path: Path | str) -> Features:
    """VGG19's maps after ``LAYERS``, of RGB in [0, 1], normalised as ImageNet's pictures are.

    Args:
        path: torchvision's ``vgg19-dcbb9e9d.pth``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not VGG19's.
    """
    from torchvision.models import vgg19

    network = vgg19(weights=None)
    load_strict(network, load_state_dict(path), what=str(path))
    layers = network.features[: LAYERS[-1] + 1].eval().requires_grad_(False)
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )

    def features(x: Tensor) -> list[Tensor]:
        layers.to(x.device)
        x, maps = (x - mean.to(x)) / std.to(x), []
        for number, layer in enumerate(layers):
            x = F.relu(x) if isinstance(layer, nn.ReLU) else layer(x)
            if number in LAYERS:
                maps.append(x)
        return maps

    return features
