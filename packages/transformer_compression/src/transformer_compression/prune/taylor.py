"""LLM-Pruner's importance of coupled structures: what the loss loses with a head or a channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Form = Literal["vectorize", "param_first", "param_second", "param_mix"]
Reduction = Literal["sum", "mean", "max", "prod", "first"]


@dataclass(frozen=True)
class Member:
    """One matrix of a group of coupled structures.

    Attributes:
        weight: (rows, inputs).
        gradient: of the mean loss, same shape.
        mean_square: mean over samples of the squared gradient of each sample, same shape.
        axis: 0 where a channel is a row, 1 where it is a column.
    """

    weight: Tensor
    gradient: Tensor
    mean_square: Tensor
    axis: int


def channel_scores(member: Member, form: Form = "param_first") -> Tensor:
    """The salience of every channel of one matrix.

    ``vectorize``: ``|sum w g|``; ``param_first`` (element^1): ``sum |w g|``; ``param_second``
    (element^2): ``sum |w h w|``; ``param_mix``: ``sum |w g - w h w / 2|``.

    Source: Ma et al., LLM-Pruner, arXiv 2305.11627; sheet 4.5.
    """
    w, g, h = member.weight, member.gradient, member.mean_square
    if form not in get_args(Form):
        raise ValueError(f"form={form!r}: expected one of {', '.join(get_args(Form))}")
    along = 1 - member.axis
    if form == "vectorize":
        return (w * g).sum(along).abs()
    salience = {
        "param_first": lambda: w * g,
        "param_second": lambda: w * h * w,
        "param_mix": lambda: w * g - 0.5 * w * h * w,
    }[form]()
    return salience.abs().sum(along)


def group_scores(scores: Sequence[Tensor], reduction: Reduction = "sum") -> Tensor:
    """One score a structure from those of the member matrices (each (structures,))."""
    stacked = torch.stack(list(scores))
    reductions: dict[str, Callable[[Tensor], Tensor]] = {
        "sum": lambda s: s.sum(0),
        "mean": lambda s: s.mean(0),
        "max": lambda s: s.amax(0),
        "prod": lambda s: s.prod(0),
        "first": lambda s: s[0],
    }
    if reduction not in reductions:
        raise ValueError(f"reduction={reduction!r}: expected one of {', '.join(reductions)}")
    return reductions[reduction](stacked)


def head_scores(
    members: Mapping[str, Member],
    *,
    kv_heads: int,
    form: Form = "param_first",
    reduction: Reduction = "sum",
) -> Tensor:
    """A score for every key/value head with all the query heads that share it.

    Args:
        members: ``q_proj``, ``k_proj``, ``v_proj`` (axis 0) and ``o_proj`` (axis 1).
        kv_heads: H; without grouped queries the number of heads.
        form: of the salience.
        reduction: over the four matrices, channel by channel; with grouped queries the query
            heads' channels are summed onto their key/value head's first.

    Returns:
        (H,): channel scores summed over a head.
    """
    per_channel = []
    for name, member in members.items():
        scores = channel_scores(member, form)
        # Query heads of one group lie side by side: (H, heads a group, head_dim).
        shared = members["k_proj"].weight.shape[0] // kv_heads
        if len(scores) % (kv_heads * shared):
            raise ValueError(f"{name} has {len(scores)} channels for {kv_heads} key/value heads")
        per_channel.append(scores.view(kv_heads, -1, shared).sum(1).flatten())
    return group_scores(per_channel, reduction).view(kv_heads, -1).sum(1)


def pruned_count(channels: int, ratio: float) -> int:
    """``c - int(c (1 - ratio))`` channels go (authors' code)."""
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio is {ratio}, expected 0 <= ratio < 1")
    return channels - int(channels * (1 - ratio))


def lowest(scores: Tensor, count: int) -> list[int]:
    """The positions of the ``count`` smallest scores, in ascending order of position."""
    return sorted(scores.argsort(stable=True)[:count].tolist())


@dataclass(frozen=True)
class Gradients:
    """Parameter name -> gradient of the mean loss, and mean of the samples' squared gradients."""

    mean: dict[str, Tensor]
    mean_square: dict[str, Tensor]


def loss_gradients(
    model: nn.Module, samples: Sequence[Tensor], loss: Callable[[nn.Module, Tensor], Tensor]
) -> Gradients:
    """Both gradients that the saliences need, of every matrix, one sample at a time.

    Args:
        model: in eval mode; its gradients are cleared.
        samples: one batch of one sample each.
        loss: ``loss(model, sample)`` -> scalar.

    Raises:
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("no samples were given; importance needs gradients of some")
    matrices = {n: p for n, p in model.named_parameters() if p.ndim == 2}
    mean = {n: torch.zeros_like(p) for n, p in matrices.items()}
    square = {n: torch.zeros_like(p) for n, p in matrices.items()}
    wanted = [p.requires_grad for p in model.parameters()]
    try:
        model.requires_grad_(True)
        with torch.enable_grad():
            for sample in samples:
                model.zero_grad(set_to_none=True)
                loss(model, sample).backward()
                for name, p in matrices.items():
                    if p.grad is not None:
                        mean[name].add_(p.grad, alpha=1 / len(samples))
                        square[name].addcmul_(p.grad, p.grad, value=1 / len(samples))
    finally:
        model.zero_grad(set_to_none=True)
        for p, flag in zip(model.parameters(), wanted, strict=True):
            p.requires_grad_(flag)
    return Gradients(mean, square)
