"""Pruning of timm vision transformers: weights one-shot, heads and FFN channels for good."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from papers_shared.complexity import count_parameters
from papers_shared.language_models import block_linears
from papers_shared.quantization import GridRule, Hessian
from transformer_compression.prune.removal import channels_of, kept, shrink_linear
from transformer_compression.prune.sequential import Method, Observe, PruneReport, prune_groups
from transformer_compression.prune.structured import head_norms, least_squares
from transformer_compression.prune.taylor import lowest, pruned_count
from transformer_compression.prune.tome import check_vit
from transformer_compression.prune.weights import Pattern


class _Stop(Exception):
    """Ends a forward pass behind the block that is looked at."""


@torch.no_grad()
def observe_block(
    model: Any,
    batches: Sequence[Tensor],
    block: Any,
    observe: Callable[[str, Tensor], None],
) -> None:
    """Show what each linear layer of a block gets when the model sees the batches.

    Args:
        model: in eval mode.
        batches: normalised pictures (B, 3, S, S).
        block: one of its blocks.
        observe: called as ``observe(name, x)``.
    """

    def stop(*_: object) -> None:
        raise _Stop

    def look(name: str) -> Callable[..., None]:
        return lambda _module, args: observe(name, args[0].detach())

    handles = [
        linear.register_forward_pre_hook(look(name))
        for name, linear in block_linears(block).items()
    ]
    handles.append(block.register_forward_hook(stop))
    try:
        for batch in batches:
            try:
                model(batch)
            except _Stop:
                continue
    finally:
        for handle in handles:
            handle.remove()


def vit_groups(model: Any, batches: Sequence[Tensor]) -> Iterator[tuple[str, Any, Observe]]:
    """The blocks in order, each seen through those before it as they are by then."""
    check_vit(model)
    for index, block in enumerate(model.blocks):
        yield f"blocks.{index}", block, partial(observe_block, model, batches, block)


def prune_vit_weights(
    model: Any,
    batches: Sequence[Tensor] = (),
    *,
    method: Method = "wanda",
    pattern: Pattern | str | float = 0.5,
    grid: GridRule | None = None,
) -> PruneReport:
    """``prune_weights`` for a timm vision transformer: the blocks' linear layers, in place.

    Args:
        model: ViT or DeiT of timm, in eval mode.
        batches: normalised pictures (B, 3, S, S); magnitude needs none.
        method, pattern, grid: see ``sequential.prune_weights``.
    """
    if method in ("wanda", "sparsegpt") and not batches:
        raise ValueError(f"{method} needs pictures to see the layers' inputs; give some batches")
    return prune_groups(
        vit_groups(model, batches),
        method=method,
        pattern=Pattern.of(pattern),
        grid=grid,
        device=next(model.parameters()).device,
    )


@dataclass
class VitStructuredReport:
    """What structured pruning left of a vision transformer."""

    ratio: float
    parameters: tuple[int, int] = (0, 0)
    heads: dict[int, list[int]] = field(default_factory=dict)
    channels: dict[int, list[int]] = field(default_factory=dict)
    seconds: float = 0.0


@torch.no_grad()
def prune_vit_structured(
    model: Any,
    batches: Sequence[Tensor],
    *,
    ratio: float = 0.25,
    attention: bool = True,
    mlp: bool = True,
    correct: bool = True,
) -> VitStructuredReport:
    """Remove heads and FFN channels of every block, by what they contribute on the batches.

    A head scores ``mean ||its output W_o||``, a channel ``|W_2| sqrt(mean act^2)``; what is left of
    the output matrices is corrected by least squares. timm's classes compute the result as it is
    (``num_heads`` and ``attn_dim`` are set); to reload, build the model and cut it to the state
    dict's shapes with ``fit_to``.

    Args:
        model: ViT or DeiT of timm, in eval mode, changed in place.
        batches: normalised pictures.
        ratio: share that goes; heads: ``int(share of channels) // head_dim``.
        attention: whether heads go.
        mlp: whether channels go.
        correct: the least-squares correction.

    Source: sheet 4.5, forward-only alternatives.
    """
    start = time.perf_counter()
    report = VitStructuredReport(ratio)
    before = count_parameters(model)
    for index, (_, block, observe) in enumerate(vit_groups(model, batches)):
        attn, fc1, fc2 = block.attn, block.mlp.fc1, block.mlp.fc2
        moments = {"attn.proj": Hessian(attn.attn_dim), "mlp.fc2": Hessian(fc2.in_features)}
        norms: list[Tensor] = []

        def look(name: str, x: Tensor) -> None:
            if name in moments:  # noqa: B023 (used within this turn of the loop)
                moments[name].add(x.cpu())  # noqa: B023
            if name == "attn.proj":
                norms.append(head_norms(x, attn.proj.weight, attn.head_dim))  # noqa: B023

        observe(look)
        count = pruned_count(attn.attn_dim, ratio) // attn.head_dim
        if attention and count:
            gone = lowest(torch.stack(norms).mean(0), count)
            stay = channels_of(kept(attn.num_heads, gone), attn.head_dim)
            full = attn.proj.weight.clone()
            _cut_heads(attn, kept(attn.num_heads, gone))
            if correct:
                attn.proj.weight.copy_(least_squares(full, moments["attn.proj"].value, stay))
            report.heads[index] = gone
        count = pruned_count(fc2.in_features, ratio)
        if mlp and count:
            scores = fc2.weight.norm(dim=0).cpu() * moments["mlp.fc2"].mean_square().sqrt()
            gone = lowest(scores, count)
            stay, full = kept(fc2.in_features, gone), fc2.weight.clone()
            shrink_linear(fc1, rows=stay)
            shrink_linear(fc2, columns=stay)
            if correct:
                fc2.weight.copy_(least_squares(full, moments["mlp.fc2"].value, stay))
            report.channels[index] = gone
    report.parameters = before, count_parameters(model)
    report.seconds = time.perf_counter() - start
    return report


def _cut_heads(attention: Any, stay: Sequence[int]) -> None:
    channels = channels_of(stay, attention.head_dim)
    width = attention.attn_dim
    shrink_linear(attention.qkv, rows=[part * width + c for part in range(3) for c in channels])
    shrink_linear(attention.proj, columns=channels)
    attention.num_heads, attention.attn_dim = len(stay), len(channels)


def fit_to(model: Any, state: dict[str, Tensor]) -> Any:
    """Cut a freshly built timm vision transformer to a pruned state dict and load it.

    Raises:
        ValueError: a layer of the state dict is larger than the model's.
    """
    check_vit(model)
    for index, block in enumerate(model.blocks):
        attn, mlp = block.attn, block.mlp
        heads = state[f"blocks.{index}.attn.proj.weight"].shape[1] // attn.head_dim
        channels = state[f"blocks.{index}.mlp.fc1.weight"].shape[0]
        if heads > attn.num_heads or channels > mlp.fc1.out_features:
            raise ValueError(f"block {index} of the state dict is larger than the model's")
        _cut_heads(attn, range(heads))
        shrink_linear(mlp.fc1, rows=range(channels))
        shrink_linear(mlp.fc2, columns=range(channels))
    model.load_state_dict(state)
    return model
