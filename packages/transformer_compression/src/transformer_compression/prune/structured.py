"""Heads and FFN channels of a language model: LLM-Pruner, and forward-only alternatives."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from papers_shared.complexity import count_parameters
from papers_shared.language_models import observe_inputs, walk_blocks
from papers_shared.quantization import Hessian
from transformer_compression.prune.removal import (
    RANKS,
    channels_of,
    kept,
    layer_sizes,
    remove_channels,
    remove_heads,
    update_config,
)
from transformer_compression.prune.taylor import (
    Form,
    Member,
    Reduction,
    channel_scores,
    group_scores,
    head_scores,
    loss_gradients,
    lowest,
    pruned_count,
)

Criterion = Literal["taylor", "activation", "l2", "random"]


@dataclass
class StructuredReport:
    """What structured pruning left.

    Attributes:
        criterion: by which.
        ratio: share of channels asked for.
        parameters: of the whole model, before and after.
        sizes: [query heads, key/value heads, FFN channels] of each layer afterwards.
        heads: layer -> removed key/value heads.
        channels: layer -> removed FFN channels.
        reload: how the saved model is loaded.
        seconds: of the whole pass.
    """

    criterion: str
    ratio: float
    parameters: tuple[int, int] = (0, 0)
    sizes: list[list[int]] = field(default_factory=list)
    heads: dict[int, list[int]] = field(default_factory=dict)
    channels: dict[int, list[int]] = field(default_factory=dict)
    reload: str = ""
    seconds: float = 0.0


def language_loss(model: Any, tokens: Tensor) -> Tensor:
    """Mean next-token cross entropy of token ids (B, T)."""
    logits = model(tokens, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def prune_structured(
    model: Any,
    batches: Sequence[Tensor] = (),
    *,
    ratio: float = 0.25,
    criterion: Criterion = "taylor",
    layers: Sequence[int] | None = None,
    attention: bool = True,
    mlp: bool = True,
    form: Form = "param_first",
    reduction: Reduction = "sum",
    correct: bool = False,
    seed: int = 0,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> tuple[Any, StructuredReport]:
    """Remove the least important heads and FFN channels of each layer for good.

    With grouped queries a key/value head goes with all its query heads. What is left reloads in
    one call, see ``removal.load_pruned``; with ``layers=None`` every layer keeps the same sizes
    and ``AutoModelForCausalLM.from_pretrained`` alone does it.

    Args:
        model: Llama-like (q/k/v/o_proj, gate/up/down_proj), changed in place.
        batches: token ids; for ``taylor`` each row is a sample (LLM-Pruner: 10 of 64 tokens).
        ratio: share that goes from each layer; heads: ``int(share of channels) // head_dim``.
        criterion: ``taylor``: LLM-Pruner's; ``activation``: forward passes only, a head by
            ``mean ||its output W_o||``, a channel by ``|down| sqrt(mean act^2)``; ``l2``:
            magnitude; ``random``.
        layers: which layers; None: all (LLM-Pruner's runs on LLaMA-7B: 4 to 29).
        attention: whether heads go.
        mlp: whether FFN channels go.
        form, reduction: of ``taylor``.
        correct: least-squares correction of o and down on the batches (``activation`` only).
        seed: of ``random``.
        progress: called as ``progress(done, total, what)``.

    Returns:
        the model (as a Mistral where Llama's config refuses its head count) and the report.

    Raises:
        ValueError: another architecture, low-rank layers, no batches, or nothing would go or be
            left.

    Source: sheet 4.5.
    """
    if criterion not in get_args(Criterion):
        raise ValueError(f"criterion={criterion!r}: expected one of {get_args(Criterion)}")
    if getattr(getattr(model, "config", None), RANKS, None):
        raise ValueError("heads and channels of low-rank factors cannot go: prune first")
    if correct and criterion != "activation":
        raise ValueError("the least-squares correction needs criterion='activation'")
    blocks = getattr(getattr(model, "model", None), "layers", None)
    if blocks is None or not hasattr(blocks[0].mlp, "gate_proj"):
        raise ValueError(
            f"{type(model).__name__}: expected a Llama-like model with model.layers[i].self_attn "
            f"and a gated mlp (Llama, Mistral, Qwen2, SmolLM …)"
        )
    start = time.perf_counter()
    report = StructuredReport(criterion, ratio)
    before = count_parameters(model)
    chosen = range(len(blocks)) if layers is None else layers
    if outside := [i for i in chosen if not 0 <= i < len(blocks)]:
        raise ValueError(f"layers {outside} are not among the {len(blocks)} of this model")
    plan = _Plan(ratio, attention, mlp)
    if criterion == "activation":
        _by_activation(model, batches, chosen, plan, report, correct=correct, progress=progress)
    else:
        scores = _static_scores(model, batches, chosen, criterion, form, reduction, seed)
        for index in chosen:
            plan.apply(blocks[index], index, *scores(index), report)
    if not report.heads and not report.channels:
        raise ValueError(f"ratio {ratio} removes nothing from layers of this size; raise it")
    model = update_config(model)
    report.parameters = before, count_parameters(model)
    report.sizes = layer_sizes(model)
    uneven = any(size != report.sizes[0] for size in report.sizes)
    report.reload = (
        "transformer_compression.prune.load_pruned(folder)"
        if uneven
        else "transformers.AutoModelForCausalLM.from_pretrained(folder)"
    )
    report.seconds = time.perf_counter() - start
    return model, report


@dataclass(frozen=True)
class _Plan:
    ratio: float
    attention: bool
    mlp: bool

    def apply(
        self,
        block: Any,
        index: int,
        heads: Tensor,
        channels: Tensor,
        report: StructuredReport,
    ) -> None:
        """Remove what scores least and note it."""
        hd = block.self_attn.head_dim
        count = pruned_count(len(heads) * hd, self.ratio) // hd
        if self.attention and count:
            report.heads[index] = lowest(heads, count)
            remove_heads(block.self_attn, report.heads[index])
        count = pruned_count(len(channels), self.ratio)
        if self.mlp and count:
            report.channels[index] = lowest(channels, count)
            remove_channels(block.mlp, report.channels[index])


ATTENTION = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1}
FEED_FORWARD = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}


def _static_scores(
    model: Any,
    batches: Sequence[Tensor],
    chosen: Sequence[int],
    criterion: Criterion,
    form: Form,
    reduction: Reduction,
    seed: int,
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Scores that do not depend on what went before: (heads, channels) of a layer."""
    layers = model.model.layers
    kv = [b.self_attn.k_proj.out_features // b.self_attn.head_dim for b in layers]
    if criterion == "random":
        generator = torch.Generator().manual_seed(seed)
        drawn = {
            i: (
                torch.rand(kv[i], generator=generator),
                torch.rand(layers[i].mlp.gate_proj.out_features, generator=generator),
            )
            for i in chosen
        }
        return drawn.__getitem__
    gradients = None
    if criterion == "taylor":
        device = next(model.parameters()).device
        samples = [row[None].to(device) for batch in batches for row in batch]
        gradients = loss_gradients(model.eval(), samples, language_loss)

    if gradients is None:  # l2: the sum of squares is the salience |w g| with g = w
        form = "param_first"

    def member(name: str, weight: Tensor, axis: int) -> Member:
        if gradients is None:
            return Member(weight, weight, weight, axis)
        return Member(weight, gradients.mean[name], gradients.mean_square[name], axis)

    def scores(index: int) -> tuple[Tensor, Tensor]:
        block, prefix = layers[index], f"model.layers.{index}"
        parts = {
            name: member(
                f"{prefix}.self_attn.{name}.weight", getattr(block.self_attn, name).weight, axis
            )
            for name, axis in ATTENTION.items()
        }
        ffn = [
            channel_scores(
                member(f"{prefix}.mlp.{name}.weight", getattr(block.mlp, name).weight, axis), form
            )
            for name, axis in FEED_FORWARD.items()
        ]
        with torch.no_grad():
            heads = head_scores(parts, kv_heads=kv[index], form=form, reduction=reduction)
            return heads.detach(), group_scores(ffn, reduction).detach()

    return scores


@torch.no_grad()
def _by_activation(
    model: Any,
    batches: Sequence[Tensor],
    chosen: Sequence[int],
    plan: _Plan,
    report: StructuredReport,
    *,
    correct: bool,
    progress: Callable[[int, int, str], None],
) -> None:
    """Block by block: the inputs of o and down tell what heads and channels contribute."""
    for index, block, stream in walk_blocks(model, batches, progress):
        if index not in chosen:
            continue
        attention, mlp = block.self_attn, block.mlp
        hd, share = attention.head_dim, attention.num_key_value_groups
        kv_heads = attention.k_proj.out_features // hd
        o, down = attention.o_proj, mlp.down_proj
        second = {"o": Hessian(o.in_features), "down": Hessian(down.in_features)}
        norms: list[Tensor] = []

        def observe(name: str, x: Tensor) -> None:
            second[name].add(x.cpu())  # noqa: B023 (used within this turn of the loop)
            if name == "o":
                norms.append(head_norms(x, o.weight, hd))  # noqa: B023

        observe_inputs(block, stream, observe, linears={"o": o, "down": down})
        heads = torch.stack(norms).mean(0).view(kv_heads, share).sum(1)
        channels = down.weight.norm(dim=0).cpu() * second["down"].mean_square().sqrt()
        full = {"o": o.weight.clone(), "down": down.weight.clone()}
        plan.apply(block, index, heads, channels, report)
        if not correct:
            continue
        if gone := report.heads.get(index):
            stay = [h * share + i for h in kept(kv_heads, gone) for i in range(share)]
            corrected = least_squares(full["o"], second["o"].value, channels_of(stay, hd))
            o.weight.copy_(corrected)
        if gone := report.channels.get(index):
            stay = kept(full["down"].shape[1], gone)
            down.weight.copy_(least_squares(full["down"], second["down"].value, stay))


def head_norms(x: Tensor, weight: Tensor, head_dim: int) -> Tensor:
    """``mean_t ||head output @ W_o||`` for every head.

    Args:
        x: (B, T, heads * head_dim), what goes into the output projection.
        weight: (D, heads * head_dim), of the output projection.
        head_dim: channels a head.

    Returns:
        (heads,) on the CPU.
    """
    parts = x.detach().flatten(0, -2).unflatten(-1, (-1, head_dim)).transpose(0, 1)
    rows = weight.unflatten(1, (-1, head_dim)).permute(1, 2, 0)
    return (parts @ rows).norm(dim=-1).mean(1).cpu()


def least_squares(
    weight: Tensor, second_moment: Tensor, stay: Sequence[int], *, damping: float = 1e-4
) -> Tensor:
    """The kept columns' best weights: ``W A A_S^T (A_S A_S^T)^-1``.

    Args:
        weight: (rows, inputs), before removal.
        second_moment: (inputs, inputs), any multiple of ``A A^T``.
        stay: kept inputs S.
        damping: share of the mean diagonal added to the inverted matrix.

    Returns:
        (rows, len(stay)).

    Source: sheet 4.5, forward-only alternatives.
    """
    index = torch.as_tensor(stay)
    moment = second_moment.to(weight.device, torch.float64)
    inner = moment[index][:, index].clone()
    inner.diagonal().add_(damping * inner.diagonal().mean())
    target = weight.double() @ moment[:, index]
    return torch.linalg.solve(inner, target.T).T.to(weight.dtype)
