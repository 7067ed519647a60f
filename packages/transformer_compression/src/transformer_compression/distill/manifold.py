"""ManifoldKD: the student's patches shall lie to each other as the teacher's do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ManifoldTerms:
    """The three unweighted terms: within an image, across images, among drawn patches."""

    patch: Tensor
    sample: Tensor
    random: Tensor


def _aligned(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    # Tokens that only one of them has (class and distillation tokens) stand in front.
    extra = student.shape[1] - teacher.shape[1]
    if extra > 0:
        student = student[:, extra:]
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in patches"
        )
    return F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)


def _relations(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(student @ student.transpose(-1, -2), teacher @ teacher.transpose(-1, -2))


def manifold_terms(
    student: Tensor, teacher: Tensor, *, patches: int = 192, generator: torch.Generator | None
) -> ManifoldTerms:
    """The terms of one pair of blocks.

    Args:
        student: (B, N, D_s), a block's output; tokens beyond the teacher's are dropped in front.
        teacher: (B, N', D_t).
        patches: how many of all B N patches the third term draws.
        generator: of that draw; torch's global one if None.

    Source: Hao et al., ManifoldKD, arXiv 2107.01378, authors' code; sheet 4.12.
    """
    s, t = _aligned(student, teacher)
    flat_s, flat_t = s.flatten(0, 1), t.flatten(0, 1)
    chosen = torch.randperm(len(flat_s), generator=generator)[:patches].to(s.device)
    return ManifoldTerms(
        patch=_relations(s, t),
        sample=_relations(s.transpose(0, 1), t.transpose(0, 1)),
        random=_relations(flat_s[chosen], flat_t[chosen]),
    )


def manifold_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    *,
    w_sample: float = 0.1,
    w_patch: float = 4.0,
    w_random: float = 0.2,
    patches: int = 192,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Weighted terms, averaged over the chosen pairs of blocks (weights: the published setting).

    Args:
        student, teacher: outputs of the chosen blocks, one to one.
        w_sample, w_patch, w_random: weights of the terms.
        patches, generator: see ``manifold_terms``.
    """
    losses = []
    for s, t in zip(student, teacher, strict=True):
        terms = manifold_terms(s, t, patches=patches, generator=generator)
        losses.append(w_sample * terms.sample + w_patch * terms.patch + w_random * terms.random)
    return torch.stack(losses).mean()
