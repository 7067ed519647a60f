"""Students of language models: cut out of the teacher, then trained to match it."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from papers_shared.language_models import find_blocks
from transformer_compression.distill.inside import look_inside
from transformer_compression.distill.losses import (
    attention_loss,
    hidden_loss,
    jensen_shannon,
    kl_divergence,
    minilm_loss,
    reverse_kl,
)
from transformer_compression.prune.layers import remove_layers

Loss = Literal["ce", "logits", "reverse", "jsd", "hidden", "minilm"]


@dataclass
class DistilReport:
    """What a distillation did.

    Attributes:
        loss: which.
        steps: updates made.
        losses: of every update.
        tokens: seen.
        seconds: of all of it.
    """

    loss: str
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0


def student_of(teacher: Any, layers: Sequence[int] | None = None, *, every: int = 3) -> Any:
    """A copy of the teacher with some of its layers; stock classes load it.

    Args:
        teacher: a causal language model of transformers.
        layers: which stay; default every ``every``-th, the first one first.
        every: 3 gives 10 of 30.

    Raises:
        ValueError: no layers, or one that the teacher does not have.
    """
    count = len(find_blocks(teacher))
    chosen = list(range(0, count, every)) if layers is None else list(layers)
    if not chosen or not set(chosen) <= set(range(count)):
        raise ValueError(f"layers {chosen}: expected some of 0 to {count - 1}")
    student = copy.deepcopy(teacher)
    remove_layers(student, [i for i in range(count) if i not in set(chosen)])
    return student


def distil(
    student: Any,
    teacher: Any,
    batches: Sequence[Tensor],
    *,
    loss: Loss = "logits",
    steps: int = 300,
    lr: float = 3e-4,
    alpha: float = 0.5,
    temperature: float = 1.0,
    beta: float = 0.5,
    layer_map: Sequence[int] | None = None,
    clip: float = 1.0,
    bf16: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> DistilReport:
    """Train a student in place: AdamW, one batch an update, cosine to a tenth of ``lr``.

    Args:
        student: a causal language model.
        teacher: the model to match; ``ce`` does not call it. For a black box, give batches from
            ``generate_text`` and ``ce``: sequence-level distillation.
        batches: token ids (B, T); used in turn.
        loss: ``ce``: next tokens alone; ``logits``: ``(1 - alpha) CE + alpha T^2 KL(p_t || p_s)``;
            ``reverse`` and ``jsd``: the same with the other divergences; ``hidden``: TinyBERT:
            hidden states and attention scores of the mapped layers, then soft cross entropy at
            T = 1; ``minilm``: relations of the last layer.
        steps: updates.
        lr: learning rate.
        alpha: weight of the teacher.
        temperature: T.
        beta: of ``jsd``.
        layer_map: teacher layer of each student layer, for ``hidden``; default g(m) = m times the
            ratio of depths (the last student layer copies the last of the teacher).
        clip: largest norm of the gradients.
        bf16: matrix products in bfloat16.
        progress: called as ``progress(done, total, what)``.

    Raises:
        ValueError: unknown loss, no batches, or models that do not fit each other.

    Source: sheet 4.12.
    """
    if loss not in get_args(Loss):
        raise ValueError(f"loss={loss!r}: expected one of {', '.join(get_args(Loss))}")
    if not batches:
        raise ValueError("distillation needs text; give batches, or make some by generate_text")
    start, report = time.perf_counter(), DistilReport(loss)
    device = next(student.parameters()).device
    matcher = _Matcher(student, teacher, loss, alpha, temperature, beta, layer_map)
    student.train()
    trained = [*student.parameters(), *matcher.projections.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=lr / 10)
    with ExitStack() as stack:
        matcher.enter(stack)
        for step, tokens in zip(range(steps), itertools.cycle(batches), strict=False):
            tokens = tokens.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                value = matcher(tokens)
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(trained, clip)
            optimizer.step()
            schedule.step()
            report.losses.append(value.item())
            report.tokens += tokens.numel()
            progress(step + 1, steps, f"updates, loss {report.losses[-1]:.3f}")
    student.eval()
    report.steps, report.seconds = steps, time.perf_counter() - start
    return report


class _Matcher:
    """Calls both models on a batch and says how far apart they are."""

    def __init__(
        self,
        student: Any,
        teacher: Any,
        loss: Loss,
        alpha: float,
        temperature: float,
        beta: float,
        layer_map: Sequence[int] | None,
    ) -> None:
        self.student, self.teacher, self.loss = student, teacher, loss
        self.alpha, self.temperature, self.beta = alpha, temperature, beta
        self.projections = nn.ModuleList()
        self.relations = loss in ("hidden", "minilm")
        if loss != "ce":
            if student.config.vocab_size != teacher.config.vocab_size:
                raise ValueError("student and teacher have different vocabularies")
            self.teacher = teacher.eval().requires_grad_(False)
        if loss == "hidden":
            deep, shallow = len(find_blocks(teacher)), len(find_blocks(student))
            even = [round((m + 1) * deep / shallow) - 1 for m in range(shallow)]
            self.map = even if layer_map is None else list(layer_map)
            if len(self.map) != shallow or not set(self.map) <= set(range(deep)):
                raise ValueError(f"layer_map {self.map} for {shallow} of {deep} layers")
            widths = student.config.hidden_size, teacher.config.hidden_size
            if widths[0] != widths[1]:
                made = [nn.Linear(*widths, bias=False) for _ in range(shallow + 1)]
                self.projections.extend(made)
                self.projections.to(next(student.parameters()).device)

    def enter(self, stack: ExitStack) -> None:
        if self.relations:
            self.of_student = stack.enter_context(look_inside(self.student))
            self.of_teacher = stack.enter_context(look_inside(self.teacher))

    def __call__(self, tokens: Tensor) -> Tensor:
        options = {"use_cache": False, "output_hidden_states": self.loss == "hidden"}
        if self.relations:
            self.of_student.clear()
            self.of_teacher.clear()
        made = self.student(tokens, **options)
        logits = made.logits[:, :-1]
        own = nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        if self.loss == "ce":
            return own
        with torch.no_grad():
            given = self.teacher(tokens, **options)
        target = given.logits[:, :-1]
        if self.loss == "logits":
            kd = kl_divergence(logits, target, self.temperature)
        elif self.loss == "reverse":
            kd = reverse_kl(logits, target, self.temperature)
        elif self.loss == "jsd":
            kd = jensen_shannon(logits, target, self.beta)
        elif self.loss == "hidden":
            theirs = [given.hidden_states[0]] + [given.hidden_states[m + 1] for m in self.map]
            projections = list(self.projections) or None
            kd = hidden_loss(made.hidden_states, theirs, projections)
            scores = [self.of_teacher.scores[m] for m in self.map]
            if self.of_student.scores[0].shape[1] == scores[0].shape[1]:
                kd = kd + attention_loss(self.of_student.scores, scores)
            kd = kd + kl_divergence(logits, target)
        else:
            s, t = self.of_student, self.of_teacher
            kd = minilm_loss(s.scores[-1], t.scores[-1], s.values[-1], t.values[-1])
        return (1 - self.alpha) * own + self.alpha * kd
