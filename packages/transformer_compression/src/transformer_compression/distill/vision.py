"""Students of vision transformers: fewer blocks, or a distillation token that learns from a CNN."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_compression.distill.losses import deit_loss, distillation_loss
from transformer_compression.distill.manifold import manifold_loss
from transformer_compression.prune.tome import check_vit

Loss = Literal["ce", "logits", "hard", "manifold", "token"]


@dataclass
class VitDistilReport:
    """What a distillation did: the loss of every update, pictures seen, seconds."""

    loss: str
    losses: list[float] = field(default_factory=list)
    pictures: int = 0
    seconds: float = 0.0


def vit_student_of(teacher: Any, blocks: Sequence[int]) -> Any:
    """A copy of a timm vision transformer with some of its blocks.

    Raises:
        ValueError: no blocks, or one that the teacher does not have.
    """
    check_vit(teacher)
    depth = len(teacher.blocks)
    if not blocks or not set(blocks) <= set(range(depth)):
        raise ValueError(f"blocks {list(blocks)}: expected some of 0 to {depth - 1}")
    student = copy.deepcopy(teacher)
    student.blocks = nn.Sequential(*[student.blocks[i] for i in blocks])
    return student


def _outputs(model: Any) -> tuple[list[Tensor], list[torch.utils.hooks.RemovableHandle]]:
    found: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda _m, _i, out: found.append(out)) for block in model.blocks
    ]
    return found, handles


def distil_vit(
    student: Any,
    teacher: Any,
    batches: Callable[[int], tuple[Tensor, Tensor]],
    *,
    loss: Loss = "logits",
    steps: int = 300,
    lr: float = 5e-4,
    weight_decay: float = 0.05,
    alpha: float = 0.5,
    temperature: float = 1.0,
    block_map: Sequence[tuple[int, int]] | None = None,
    w_sample: float = 0.1,
    w_patch: float = 4.0,
    w_random: float = 0.2,
    seed: int = 0,
    bf16: bool = False,
    teacher_view: Callable[[Tensor], Tensor] = lambda pictures: pictures,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> VitDistilReport:
    """Train a student in place: AdamW, cosine to zero.

    Args:
        student: timm vision transformer; for ``token`` one with a distillation token
            (``VisionTransformerDistilled``).
        teacher: any classifier; for ``manifold`` a timm vision transformer.
        batches: ``batches(step)`` -> normalised pictures (B, 3, S, S) and labels (B,).
        loss: ``ce``; ``logits``: soft targets; ``hard``: the teacher's best class; ``manifold``:
            soft targets and ManifoldKD's relations; ``token``: DeiT's hard distillation.
        steps: updates.
        lr, weight_decay: AdamW's.
        alpha, temperature: see ``distillation_loss``.
        block_map: (student block, teacher block) pairs of ``manifold``; default one to one from
            both ends, as published.
        w_sample, w_patch, w_random: see ``manifold_loss``.
        seed: of ManifoldKD's draw of patches.
        bf16: matrix products in bfloat16.
        teacher_view: what the teacher is shown instead (another normalisation).
        progress: called as ``progress(done, total, what)``.

    Raises:
        ValueError: unknown loss, or a student that does not fit it.

    Source: sheet 4.12.
    """
    if loss not in get_args(Loss):
        raise ValueError(f"loss={loss!r}: expected one of {', '.join(get_args(Loss))}")
    if loss == "token" and not hasattr(student, "head_dist"):
        raise ValueError(
            "loss='token' needs a student with a distillation token: "
            "timm.models.deit.VisionTransformerDistilled"
        )
    start, report = time.perf_counter(), VitDistilReport(loss)
    generator = torch.Generator().manual_seed(seed)
    device = next(student.parameters()).device
    student.train()
    if loss == "token":
        student.set_distilled_training(True)
    teacher.eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    handles: list[torch.utils.hooks.RemovableHandle] = []
    if loss == "manifold":
        ours, handles = _outputs(student)
        theirs, more = _outputs(teacher)
        handles += more
        pairs = block_map or _pairs(student, teacher)
    try:
        for step in range(steps):
            pictures, labels = (t.to(device) for t in batches(step))
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                if loss == "manifold":
                    ours.clear()
                    theirs.clear()
                logits = student(pictures)
                target = torch.empty(0)
                if loss != "ce":
                    with torch.no_grad():
                        target = teacher(teacher_view(pictures)).float()
                if loss == "ce":
                    value = F.cross_entropy(logits.float(), labels)
                elif loss == "token":
                    own, distilled = (z.float() for z in logits)
                    value = deit_loss(own, distilled, target, labels)
                else:
                    value = distillation_loss(
                        logits.float(),
                        target,
                        labels,
                        alpha=alpha,
                        temperature=temperature,
                        hard=loss == "hard",
                    )
                if loss == "manifold":
                    value = value + manifold_loss(
                        [ours[s].float() for s, _ in pairs],
                        [theirs[t].float() for _, t in pairs],
                        w_sample=w_sample,
                        w_patch=w_patch,
                        w_random=w_random,
                        generator=generator,
                    )
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            report.losses.append(value.item())
            report.pictures += len(pictures)
            progress(step + 1, steps, "updates")
    finally:
        for handle in handles:
            handle.remove()
    if loss == "token":
        student.set_distilled_training(False)
    student.eval()
    report.seconds = time.perf_counter() - start
    return report


def _pairs(student: Any, teacher: Any) -> list[tuple[int, int]]:
    """The first and the last blocks of both, as many from either end as fit."""
    shallow, deep = len(student.blocks), len(teacher.blocks)
    half = min(4, max(1, shallow // 2))
    front = [(i, i) for i in range(half)]
    return front + [(shallow - i, deep - i) for i in range(half, 0, -1) if shallow - i >= half]
