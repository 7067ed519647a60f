"""The distillation functions in the shape of ``METHODS``: the model given is the teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from transformer_compression.core import Data, Outcome
from transformer_compression.distill.language import Loss, distil, student_of
from transformer_compression.distill.resnet import MEAN, STD, load_resnet20
from transformer_compression.distill.text import generate_text
from transformer_compression.distill.vision import Loss as VisionLoss
from transformer_compression.distill.vision import distil_vit, vit_student_of
from transformer_compression.vision.data import MEAN as OWN_MEAN
from transformer_compression.vision.data import STD as OWN_STD


def language(
    model: Any,
    data: Data,
    *,
    loss: Loss,
    every: int,
    steps: int,
    lr: float,
    alpha: float,
    temperature: float = 1.0,
) -> Outcome:
    """A student of every ``every``-th layer matches the model given."""
    student = student_of(model, every=every)
    report = distil(
        student,
        model,
        data.batches,
        loss=loss,
        steps=steps,
        lr=lr,
        alpha=alpha,
        temperature=temperature,
        progress=data.progress,
    )
    return Outcome(student, notes=[_what(report.losses)], details=report)


def black_box(
    model: Any,
    data: Data,
    *,
    every: int,
    steps: int,
    lr: float,
    count: int,
    length: int,
    prompt: int,
    temperature: float,
    seed: int,
) -> Outcome:
    """``prompt`` tokens of each given window are the questions; 0: the teacher starts by itself."""
    prompts = torch.cat([batch[:, :prompt] for batch in data.batches]) if prompt else None
    text = generate_text(
        model,
        count=count,
        length=length,
        seed=seed,
        prompts=prompts,
        temperature=temperature,
        progress=data.progress,
    )
    batches = [pair for part in text for pair in part.split(2)]
    student = student_of(model, every=every)
    report = distil(student, model, batches, loss="ce", steps=steps, lr=lr, progress=data.progress)
    return Outcome(student, notes=[_what(report.losses)], details=report)


def _what(losses: list[float]) -> str:
    return f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {len(losses)} updates"


def _batches(data: Data) -> Callable[[int], tuple[Tensor, Tensor]]:
    if len(data.labels) != len(data.batches):
        raise ValueError(
            f"{len(data.labels)} batches of labels for {len(data.batches)} of pictures; a student "
            f"learns from both: give Data(batches, labels)"
        )
    return lambda step: (
        data.batches[step % len(data.batches)],
        data.labels[step % len(data.labels)],
    )


def vision(
    model: Any,
    data: Data,
    *,
    loss: VisionLoss,
    every: int,
    steps: int,
    lr: float,
    alpha: float,
    temperature: float,
    seed: int,
) -> Outcome:
    """A student of every ``every``-th block matches the model given."""
    student = vit_student_of(model, range(0, len(model.blocks), every))
    report = distil_vit(
        student,
        model,
        _batches(data),
        loss=loss,
        steps=steps,
        lr=lr,
        alpha=alpha,
        temperature=temperature,
        seed=seed,
        progress=data.progress,
    )
    return Outcome(student, notes=[_what(report.losses)], details=report)


def for_resnet(pictures: Tensor) -> Tensor:
    """Pictures normalised for our vision transformers, as the convolutional teacher wants them."""
    shift, scale, mean, std = (
        torch.tensor(v)[:, None, None].to(pictures) for v in (OWN_MEAN, OWN_STD, MEAN, STD)
    )
    return (pictures * scale + shift - mean) / std


def from_cnn(model: Any, data: Data, *, steps: int, lr: float, alpha: float, hard: bool) -> Outcome:
    """The model given goes on learning from the convolutional network."""
    student = copy.deepcopy(model)
    report = distil_vit(
        student,
        load_resnet20().to(next(student.parameters()).device),
        _batches(data),
        loss="hard" if hard else "logits",
        steps=steps,
        lr=lr,
        alpha=alpha,
        teacher_view=for_resnet,
        progress=data.progress,
    )
    return Outcome(student, notes=[_what(report.losses)], details=report)
