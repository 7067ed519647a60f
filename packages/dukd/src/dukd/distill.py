"""Distillers: what a student is trained with, given a teacher. The methods are in ``methods``.

    distiller = DUKD(teacher, student)
    loss = distiller.loss(lr, hr)        # a scalar; distiller.parts has its terms
    loss.backward()

Source: dukd sheet 4.1 and 4.2. Losses are L1, mean over pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dukd.features import FeatureLoss
from dukd.upcycling import InvertibleTransforms, draw_cells, zoom_in, zoom_out

StepMode = Literal["joint", "released"]
Losses = dict[str, Tensor]


class Distiller:
    """Trains a student against the ground truth, with or without a teacher's help.

    Args:
        teacher: any network, one picture in, one out; frozen and put into eval mode. None for
            methods that need none.
        student: any network of the same scale; its mode stays.
        pixel_weight: of every loss against a true picture.
        kd_weight: of every loss against the teacher.
        seed: of the draws; see ``reseed``.

    Attributes:
        parts: the weighted terms of the last ``loss``, detached.

    Raises:
        ValueError: a teacher is needed and missing.
    """

    def __init__(
        self,
        teacher: nn.Module | None,
        student: nn.Module,
        *,
        pixel_weight: float = 1.0,
        kd_weight: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.teacher, self.student = teacher, student
        self.pixel_weight, self.kd_weight = pixel_weight, kd_weight
        self.parts: Losses = {}
        self.rng = np.random.RandomState(seed)
        if teacher is None and kd_weight:
            raise ValueError(f"{type(self).__name__} needs a teacher, or kd_weight=0")
        if teacher is not None:
            teacher.eval().requires_grad_(False)

    def reseed(self, seed: int) -> None:
        """Let the draws begin anew: called with a number of the step, training can resume."""
        self.rng = np.random.RandomState(seed % 2**32)

    def loss(self, lr: Tensor, hr: Tensor) -> Tensor:
        """The sum of all terms, to be differentiated.

        Args:
            lr: (B, 3, H, W) in [0, 1].
            hr: (B, 3, s * H, s * W) in [0, 1].

        Raises:
            ValueError: sizes do not fit each other, or the teacher's output is not finite.
        """
        self.parts = {}
        for terms in self.stages(lr, hr):
            self.parts |= terms
        total = torch.stack(list(self.parts.values())).sum()
        self.parts = {name: value.detach() for name, value in self.parts.items()}
        return total

    def stages(self, lr: Tensor, hr: Tensor) -> Iterator[Losses]:
        """The terms in the order in which the optimizer steps: one group, or more.

        Each group is computed when it is asked for: after a step on the one before.
        """
        yield self._supervised(lr, hr)

    # ---- parts of methods

    def _supervised(self, lr: Tensor, hr: Tensor) -> Losses:
        return {"pixel": self.pixel_weight * F.l1_loss(self._student(lr, hr), hr)}

    def _student(self, lr: Tensor, like: Tensor) -> Tensor:
        return _fitting(self.student(lr).float(), like.shape, "student", lr)

    def _labels(self, *inputs: Tensor, scale: int) -> list[Tensor]:
        """The teacher's outputs, of inputs of one size in one pass.

        Raises:
            ValueError: another scale than the student's, or NaN or infinity.
        """
        assert self.teacher is not None, "the constructor has asked for it"
        with torch.no_grad():
            joined = torch.cat(inputs) if len(inputs) > 1 else inputs[0]
            out = self.teacher(joined).float()
        sides = (side * scale for side in joined.shape[-2:])
        _fitting(out, (*joined.shape[:-2], *sides), "teacher", joined)
        if not torch.isfinite(out).all():
            count = int((~torch.isfinite(out)).sum())
            raise ValueError(
                f"the teacher's output has {count} of {out.numel()} values that are NaN or "
                "infinite: its weights or the mixed precision are at fault (try float32)"
            )
        return list(out.split([len(x) for x in inputs]))


def _fitting(out: Tensor, shape: Sequence[int], who: str, given: Tensor) -> Tensor:
    if tuple(out.shape) != tuple(shape):
        raise ValueError(
            f"the {who} makes {tuple(out.shape)} of {tuple(given.shape)}, expected "
            f"{tuple(shape)}: teacher, student and data must have the same scale and channels"
        )
    return out


def scale_of(lr: Tensor, hr: Tensor) -> int:
    """Pixels of ``hr`` a pixel of ``lr``.

    Raises:
        ValueError: it is no whole number, or not the same in both directions.
    """
    (h, w), (height, width) = lr.shape[-2:], hr.shape[-2:]
    scale = height // h
    if len(lr) != len(hr) or (height, width) != (scale * h, scale * w):
        raise ValueError(
            f"lr of {tuple(lr.shape)} and hr of {tuple(hr.shape)} are no pairs: the sides of hr "
            "must be the same multiple of those of lr"
        )
    return scale


class LogitsKD(Distiller):
    """The student copies the teacher's output, and with ``features`` its feature maps.

    L = w_pix |S(lr) - hr| + w_kd |S(lr) - T(lr)| (+ L_features)

    Args:
        teacher, student: see ``Distiller``.
        features: transform of feature maps (see ``FeatureLoss``); None for no such term.
        feature_weight: of it.
        positions, teacher_positions: see ``FeatureLoss``.
        released_gradient: the feature term is shown and has no gradient, as in the released
            code, whose FAKD is thereby logits KD.
        options: of ``Distiller``.

    Source: dukd sheet 4.3b and 4.5 (``BaseKD``, ``FAKD``).
    """

    def __init__(
        self,
        teacher: nn.Module | None,
        student: nn.Module,
        *,
        features: str | None = None,
        feature_weight: float = 10.0,
        positions: Any = None,
        teacher_positions: Any = None,
        released_gradient: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(teacher, student, **options)
        self.released_gradient = released_gradient
        self.features: FeatureLoss | None = None
        if features is not None:
            if teacher is None:
                raise ValueError("feature maps are compared with a teacher's; none was given")
            self.features = FeatureLoss(
                teacher,
                student,
                transform=features,
                weight=feature_weight,
                positions=positions,
                teacher_positions=teacher_positions,
            )

    def stages(self, lr: Tensor, hr: Tensor) -> Iterator[Losses]:
        labels = []
        if self.teacher is not None and (self.kd_weight or self.features):
            labels = self._labels(lr, scale=scale_of(lr, hr))
        yield self._first(lr, hr, labels, self._student(lr, hr))

    def _first(self, lr: Tensor, hr: Tensor, labels: list[Tensor], out: Tensor) -> Losses:
        """The terms on the original pair; ``labels`` begin with the teacher's of ``lr``."""
        terms = {"pixel": self.pixel_weight * F.l1_loss(out, hr)}
        if self.kd_weight:
            terms["kd"] = self.kd_weight * F.l1_loss(out, labels[0])
        if self.features is not None:
            # With upcycled inputs in the same pass, lr's maps come first.
            theirs = [f[: len(lr)] for f in self.features.take("teacher")]
            ours = [f[: len(lr)] for f in self.features.take("student")]
            loss = self.features(ours, theirs)
            terms["feature"] = loss.detach() if self.released_gradient else loss
        return terms


class DUKD(LogitsKD):
    """Data upcycling: zoom-in and zoom-out inputs, label consistency under transforms.

    L = w_pix |S(lr) - hr| + w_kd |S(lr) - T(lr)|
      + w_kd |F^-1(S(F(u))) - T(u)|                       u = cells of hr (zoom-in)
      + w_pix |S(d) - lr| + w_kd |S(d) - T(d)|            d = lr reduced (zoom-out)

    Args:
        teacher, student: see ``Distiller``; no teacher: zoom-out with the true label alone
            (``kd_weight=0, cells=0``).
        cells: zoom-in cells an iteration, of s * s; 0: none.
        zoom_out: whether there is a zoom-out term.
        probability: of each invertible operation on the zoom-in inputs; None: no such section
            (nothing is drawn).
        operations: which, of ``ihvt``.
        consistency: what the transforms act on: ``zoom_in``, or ``lr`` (then
            w_kd |F^-1(S(F(lr))) - T(lr)| is a term of its own; label consistency alone with
            ``cells=0, zoom_out=False``).
        released_order: undo the transforms in the released code's order, wrong for 12.6 % of the
            items.
        step_mode: ``joint``, one optimizer step on the sum, the paper's formula; ``released``:
            two steps, the second with the first one's gradient still there.
        options: of ``LogitsKD``.

    Source: dukd sheet 4.1 to 4.3; defaults are the released options of EDSR x3 and x4.
    """

    def __init__(
        self,
        teacher: nn.Module | None,
        student: nn.Module,
        *,
        cells: int = 1,
        zoom_out: bool = True,
        probability: float | None = 0.3,
        operations: str = "ihvt",
        consistency: Literal["zoom_in", "lr"] = "zoom_in",
        released_order: bool = False,
        step_mode: StepMode = "joint",
        pixel_weight: float = 5.0,
        **options: Any,
    ) -> None:
        super().__init__(teacher, student, pixel_weight=pixel_weight, **options)
        if cells and not self.kd_weight:
            raise ValueError("zoom-in inputs have the teacher's labels alone; cells=0 without it")
        if step_mode not in ("joint", "released") or consistency not in ("zoom_in", "lr"):
            raise ValueError(f"unknown step_mode {step_mode!r} or consistency {consistency!r}")
        self.cells, self.zoom_out, self.probability = cells, zoom_out, probability
        self.operations, self.consistency = operations, consistency
        self.released_order, self.step_mode = released_order, step_mode

    def stages(self, lr: Tensor, hr: Tensor) -> Iterator[Losses]:
        scale = scale_of(lr, hr)
        cells = draw_cells(self.rng, self.cells, scale=scale)
        extra = [zoom_in(hr, cells, scale=scale)] if cells else []
        labels = self._labels(lr, *extra, scale=scale) if self.kd_weight else []
        if self.consistency == "lr" and self.probability:
            extra.append(lr)
            labels.append(labels[0])
        inputs, undo = self._transformed(extra)
        if self.step_mode == "released":
            yield self._first(lr, hr, labels, self._student(lr, hr))
            outputs = [self.student(x).float() for x in inputs]
            yield self._upcycled(lr, outputs, labels, undo, scale)
        else:
            # One pass for all inputs of one size.
            sizes = [len(lr), *map(len, inputs)]
            out, *outputs = self.student(torch.cat([lr, *inputs])).float().split(sizes)
            terms = self._first(lr, hr, labels, _fitting(out, hr.shape, "student", lr))
            yield terms | self._upcycled(lr, outputs, labels, undo, scale)

    def _transformed(
        self, inputs: list[Tensor]
    ) -> tuple[list[Tensor], InvertibleTransforms | None]:
        if not inputs or self.probability is None:
            return inputs, None
        transforms = InvertibleTransforms.draw(
            self.rng, len(inputs[-1]), probability=self.probability, operations=self.operations
        )
        return [*inputs[:-1], transforms.apply(inputs[-1])], transforms

    def _upcycled(
        self,
        lr: Tensor,
        outputs: list[Tensor],
        labels: list[Tensor],
        transforms: InvertibleTransforms | None,
        scale: int,
    ) -> Losses:
        terms: Losses = {}
        if transforms is not None:
            outputs = [
                *outputs[:-1],
                transforms.undo(outputs[-1], released_order=self.released_order),
            ]
        names = ["zoom_in"] * bool(self.cells) + ["consistency"] * (self.consistency == "lr")
        for name, out, label in zip(names, outputs, labels[1:], strict=False):
            terms[name] = self.kd_weight * F.l1_loss(out, label)
        if self.zoom_out:
            reduced = zoom_out(lr, scale=scale)
            out = self._student(reduced, lr)
            terms["zoom_out_pixel"] = self.pixel_weight * F.l1_loss(out, lr)
            if self.kd_weight:
                (label,) = self._labels(reduced, scale=scale)
                terms["zoom_out_kd"] = self.kd_weight * F.l1_loss(out, label)
        return terms
