"""What a student is asked to match: logits, hidden states, attention, value relations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """``T^2 KL(softmax(z_t / T) || softmax(z_s / T))``, summed over classes, mean over rows.

    DeiT's own code divides by rows times classes; this is Hinton's.

    Args:
        student, teacher: logits (..., classes).
        temperature: T.

    Source: sheet 4.12.
    """
    log_s = F.log_softmax(student.float().flatten(0, -2) / temperature, -1)
    log_t = F.log_softmax(teacher.float().flatten(0, -2) / temperature, -1)
    return temperature**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def reverse_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """``T^2 KL(p_s || p_t)``: MiniLLM's direction, token by token on given text."""
    log_s = F.log_softmax(student.float().flatten(0, -2) / temperature, -1)
    log_t = F.log_softmax(teacher.float().flatten(0, -2) / temperature, -1)
    return temperature**2 * (log_s.exp() * (log_s - log_t)).sum(-1).mean()


def jensen_shannon(student: Tensor, teacher: Tensor, beta: float = 0.5) -> Tensor:
    """GKD's ``beta KL(p_t || m) + (1 - beta) KL(p_s || m)``, ``m = beta p_t + (1 - beta) p_s``.

    Raises:
        ValueError: beta outside (0, 1), where one of the two terms is all there is.
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta is {beta}, expected 0 < beta < 1; take kl_divergence or reverse_kl")
    p_s = F.softmax(student.float().flatten(0, -2), -1)
    p_t = F.softmax(teacher.float().flatten(0, -2), -1)
    middle = (beta * p_t + (1 - beta) * p_s).clamp_min(1e-30).log()

    def divergence(p: Tensor) -> Tensor:
        return (p * (p.clamp_min(1e-30).log() - middle)).sum(-1).mean()

    return beta * divergence(p_t) + (1 - beta) * divergence(p_s)


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    alpha: float = 0.5,
    temperature: float = 1.0,
    hard: bool = False,
) -> Tensor:
    """``(1 - alpha) CE(y, z_s) + alpha KD``.

    Args:
        student, teacher: logits (B, classes).
        labels: class ids (B,).
        alpha: weight of the teacher.
        temperature: of the soft form.
        hard: KD is the cross entropy to the teacher's best class.
    """
    base = F.cross_entropy(student, labels)
    if hard:
        kd = F.cross_entropy(student, teacher.argmax(-1))
    else:
        kd = kl_divergence(student, teacher, temperature)
    return (1 - alpha) * base + alpha * kd


def deit_loss(cls_logits: Tensor, dist_logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """DeiT's hard distillation: half the class token's CE, half the distillation token's.

    Args:
        cls_logits, dist_logits: (B, classes) of the two tokens.
        teacher: logits (B, classes); the distillation token learns their best class.
        labels: class ids (B,).
    """
    own = F.cross_entropy(cls_logits, labels)
    return (own + F.cross_entropy(dist_logits, teacher.argmax(-1))) / 2


def hidden_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    projections: Sequence[torch.nn.Module] | None = None,
) -> Tensor:
    """TinyBERT's ``mean over mapped layers of MSE(H_s W_h, H_t)``.

    Args:
        student, teacher: hidden states (B, T, D) of the mapped layers, embeddings first.
        projections: W_h of each; None where the widths are equal.

    Raises:
        ValueError: unequal numbers of layers, or widths that differ without projections.
    """
    if len(student) != len(teacher) or not student:
        raise ValueError(f"{len(student)} student layers are mapped to {len(teacher)}")
    total = student[0].new_zeros(())
    for index, (s, t) in enumerate(zip(student, teacher, strict=True)):
        s = s if projections is None else projections[index](s)
        if s.shape != t.shape:
            raise ValueError(f"widths {s.shape[-1]} and {t.shape[-1]} differ: give projections")
        total = total + F.mse_loss(s, t)
    return total / len(student)


def attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """TinyBERT's MSE of attention scores **before** the softmax, over visible places.

    Args:
        student, teacher: scores (B, heads, T, T) of the mapped layers; -inf where masked.
    """
    losses = []
    for s, t in zip(student, teacher, strict=True):
        seen = torch.isfinite(s) & torch.isfinite(t)
        losses.append(F.mse_loss(s[seen], t[seen]))
    return torch.stack(losses).mean()


def _row_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean over rows of KL(softmax(teacher) || softmax(student)); -inf entries count nothing."""
    log_t, log_s = F.log_softmax(teacher.float(), -1), F.log_softmax(student.float(), -1)
    p = log_t.exp()
    return torch.where(p > 0, p * (log_t - log_s), 0.0).sum(-1).mean()


def minilm_loss(
    student_scores: Tensor, teacher_scores: Tensor, student_values: Tensor, teacher_values: Tensor
) -> Tensor:
    """MiniLM, last layer: ``KL(A_t || A_s) + KL(VR_t || VR_s)``, VR = softmax(V V^T / sqrt d).

    Args:
        student_scores, teacher_scores: (B, heads, T, T) before the softmax; as many heads.
        student_values, teacher_values: (B, KV heads, T, d); as many heads, widths are free.

    Raises:
        ValueError: the numbers of heads differ.
    """
    for s, t in ((student_scores, teacher_scores), (student_values, teacher_values)):
        if s.shape[1] != t.shape[1]:
            raise ValueError(f"MiniLM compares head by head: {s.shape[1]} and {t.shape[1]} heads")

    def relation(v: Tensor) -> Tensor:
        return v @ v.transpose(-1, -2) / v.shape[-1] ** 0.5

    attention = _row_kl(teacher_scores, student_scores)
    return attention + _row_kl(relation(teacher_values), relation(student_values))
