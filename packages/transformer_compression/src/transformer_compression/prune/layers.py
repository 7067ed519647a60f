"""Whole layers: how little each one changes its input, and a model without some of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from papers_shared.complexity import count_parameters
from papers_shared.language_models import block_names, find_blocks, run_block, walk_blocks
from transformer_compression.prune.removal import RANKS, SIZES

Criterion = Literal["block_influence", "relative_magnitude", "angular", "random", "last"]


@dataclass(frozen=True)
class LayerReport:
    """What layer dropping did.

    Attributes:
        criterion: by which.
        removed: the layers' numbers in the whole model.
        scores: of every layer (of every run of ``count`` layers for ``angular``); empty where
            the criterion has none.
        parameters: of the whole model, before and after.
        seconds: of the whole pass.
    """

    criterion: str
    removed: list[int]
    scores: list[float]
    parameters: tuple[int, int]
    seconds: float


def block_influence(before: Tensor, after: Tensor) -> Tensor:
    """``1 - mean_t cos(x_t, f(x)_t)`` of hidden states (B, T, D) around a block.

    Source: ShortGPT (Men et al., arXiv 2403.03853); sheet 4.6.
    """
    return 1 - nn.functional.cosine_similarity(before.float(), after.float(), dim=-1).mean()


def relative_magnitude(before: Tensor, after: Tensor) -> Tensor:
    """``mean_t ||f(x)|| / ||x + f(x)||``, f(x) being what the block adds."""
    return ((after - before).norm(dim=-1) / after.norm(dim=-1)).mean()


def angular_distance(before: Tensor, after: Tensor) -> Tensor:
    """``arccos(cos) / pi`` at the last token, between the two ends of a run of layers."""
    cos = nn.functional.cosine_similarity(before[:, -1].float(), after[:, -1].float(), dim=-1)
    return (cos.clamp(-1, 1).arccos() / math.pi).mean()


@torch.no_grad()
def layer_scores(
    model: nn.Module,
    batches: Sequence[Tensor],
    *,
    criterion: Criterion = "block_influence",
    count: int = 1,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> list[float]:
    """A score a layer, small where the layer does little; for ``angular`` a score a run of layers.

    Args:
        model: a causal language model.
        batches: token ids (B, T) each.
        criterion: block_influence, relative_magnitude or angular.
        count: layers a run.
        progress: called as ``progress(done, total, what)``.
    """
    states: list[list[Tensor]] = []
    for index, block, stream in walk_blocks(model, batches, progress):
        states.append(stream.hidden)
        if index + 1 == len(find_blocks(model)):
            states.append(run_block(block, stream).hidden)
    measure = {
        "block_influence": block_influence,
        "relative_magnitude": relative_magnitude,
        "angular": angular_distance,
    }
    if criterion not in measure:
        raise ValueError(f"criterion={criterion!r} has no scores; expected {', '.join(measure)}")
    span = count if criterion == "angular" else 1
    return [
        torch.stack([measure[criterion](a, b) for a, b in zip(x, y, strict=True)]).mean().item()
        for x, y in zip(states[:-span], states[span:], strict=True)
    ]


def remove_layers(model: Any, removed: Sequence[int]) -> None:
    """Take layers out of a causal language model of transformers, in place; the config follows.

    Raises:
        ValueError: a number outside the model, or no layer would be left.
    """
    blocks = find_blocks(model)
    if outside := [i for i in removed if not 0 <= i < len(blocks)]:
        raise ValueError(f"layers {outside} are not among the {len(blocks)} of this model")
    stay = [i for i in range(len(blocks)) if i not in set(removed)]
    if not stay:
        raise ValueError("every layer would go")
    names = block_names(model)
    fresh = [blocks[i] for i in stay]
    del blocks[len(stay) :]
    for index, block in enumerate(fresh):
        blocks[index] = block
        for module in block.modules():  # the cache is addressed by number
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    config = model.config
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[i] for i in stay]
    if (sizes := getattr(config, SIZES, None)) is not None:
        setattr(config, SIZES, [sizes[i] for i in stay])
    if (ranks := getattr(config, RANKS, None)) is not None:
        renamed = {
            names[new] + name.removeprefix(names[old]): rank
            for new, old in enumerate(stay)
            for name, rank in ranks.items()
            if name.startswith(f"{names[old]}.")
        }
        setattr(config, RANKS, renamed)
    config.num_hidden_layers = len(stay)


def drop_layers(
    model: Any,
    batches: Sequence[Tensor] = (),
    *,
    count: int = 3,
    criterion: Criterion = "block_influence",
    seed: int = 0,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> tuple[Any, LayerReport]:
    """Remove the layers that do least, in one shot; the rest reloads with stock classes.

    Args:
        model: a causal language model of transformers, changed in place.
        batches: calibration token ids; ``random`` and ``last`` need none.
        count: layers that go.
        criterion: block_influence (ShortGPT), relative_magnitude, angular (one run of neighbouring
            layers), random, last (the layers before the very last one).
        seed: of ``random``.
        progress: called as ``progress(done, total, what)``.

    Raises:
        ValueError: unknown criterion, or ``count`` outside 1 .. layers - 1.

    Source: sheet 4.6.
    """
    start, before = time.perf_counter(), count_parameters(model)
    total = len(find_blocks(model))
    if criterion not in get_args(Criterion):
        raise ValueError(f"criterion={criterion!r}: expected one of {get_args(Criterion)}")
    if not 0 < count < total:
        raise ValueError(f"count={count}: expected 1 to {total - 1} of the {total} layers")
    scores: list[float] = []
    if criterion == "random":
        generator = torch.Generator().manual_seed(seed)
        removed = torch.randperm(total, generator=generator)[:count].tolist()
    elif criterion == "last":
        removed = (
            list(range(total - 1 - count, total - 1)) if count < total - 1 else [*range(count)]
        )
    else:
        scores = layer_scores(model, batches, criterion=criterion, count=count, progress=progress)
        order = sorted(range(len(scores)), key=scores.__getitem__)
        first = order[0]
        removed = [*range(first, first + count)] if criterion == "angular" else order[:count]
    remove_layers(model, removed)
    report = LayerReport(
        criterion,
        sorted(removed),
        scores,
        (before, count_parameters(model)),
        time.perf_counter() - start,
    )
    return model, report
