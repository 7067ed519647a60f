"""AWQ: channels that matter are scaled up before rounding, and weights clipped.

Source: Lin et al., arXiv 2306.00978; CBQ sheet 4.7 (their code; on a CPU theirs corrupts the
weights that it saved, because ``.cpu()`` does not copy there).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from papers_shared.language_models import (
    BlockStream,
    block_layout,
    block_linears,
    block_names,
    observe_inputs,
    walk_blocks,
)
from papers_shared.quantization import GridRule, QuantizedWeight, round_to_nearest
from transformer_compression.core import Data, Outcome
from transformer_compression.quantize.smooth import InputRule, fold_scale, quantize_inputs
from transformer_compression.quantize.walk import weights_outcome

RATIOS = 20
CLIP_STEPS, CLIP_GRID, CLIP_TOKENS = 10, 20, 512
UNCLIPPED = ("q_proj", "k_proj")


@dataclass(frozen=True)
class ScaleGroup:
    """Linear layers that share an input, what feeds it, and the module whose output is judged.

    Attributes:
        before: name of the norm or linear layer whose output is divided.
        layers: names of the linear layers that read it.
        inspect: name of the module whose output the search compares.
    """

    before: str
    layers: tuple[str, ...]
    inspect: str


def scale_groups(block: nn.Module) -> list[ScaleGroup]:
    """The four groups of a Llama-like block; v to o only where their sizes agree (no GQA).

    Raises:
        ValueError: a block of another kind, or one into which scales cannot be folded.
    """
    if block_layout(block) != "llama":
        raise ValueError(f"AWQ supports Llama-like blocks, not {type(block).__name__}")
    linears = block_linears(block)
    q, k, v, o = (f"self_attn.{n}_proj" for n in "qkvo")
    groups = [ScaleGroup("input_layernorm", (q, k, v), "self_attn")]
    if linears[v].weight.shape == linears[o].weight.shape:
        groups.append(ScaleGroup(v, (o,), o))
    gate, up, down = "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"
    groups.append(ScaleGroup("post_attention_layernorm", (gate, up), "mlp"))
    groups.append(ScaleGroup(up, (down,), down))
    return groups


@torch.no_grad()
def search_scale(
    run: Callable[[], Tensor], layers: Sequence[nn.Linear], x: Tensor, rule: GridRule
) -> Tensor:
    """The best of 20 powers of the mean activation.

    Args:
        run: the output of the inspected module with the layers' present weights.
        layers: which read the input; their weights are restored afterwards.
        x: (T, features), the input.
        rule: the grid.

    Returns:
        (features,), of least mean squared difference to the float output; strictly smaller
        replaces.
    """
    magnitude, squares = x.abs().mean(0), x.square().mean(0)
    saved = [layer.weight.detach().clone() for layer in layers]
    wanted = run()
    best, least = torch.ones_like(magnitude), float("inf")
    for i in range(RATIOS):
        scale = magnitude.pow(i / RATIOS).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        for layer, weight in zip(layers, saved, strict=True):
            scaled = weight * scale
            grid = rule(scaled, squares / scale.square())
            layer.weight.copy_(grid.nearest(scaled) / scale)
        error = (run() - wanted).float().square().mean().item()
        for layer, weight in zip(layers, saved, strict=True):
            layer.weight.copy_(weight)
        if error < least:
            best, least = scale, error
    return best


@torch.no_grad()
def search_clip(
    weight: Tensor,
    x: Tensor,
    rule: GridRule,
    *,
    tokens: int = CLIP_TOKENS,
    grid: int = CLIP_GRID,
    max_shrink: float = CLIP_STEPS / CLIP_GRID,
) -> Tensor:
    """The magnitude to clip each group of a row at.

    Args:
        weight: (rows, inputs).
        x: (T, inputs), the layer's inputs; every ``T // tokens``-th is used.
        rule: the grid.
        tokens: about how many inputs are used.
        grid: candidates are ``1 - i / grid``.
        max_shrink: up to this i / grid, exclusive.

    Returns:
        (rows, groups): of least mean squared error of the group's part of the output.
    """
    group = weight.shape[1] if rule.group == -1 else rule.group
    used = x[:: max(1, len(x) // tokens)].unflatten(1, (-1, group)).transpose(0, 1)  # (G, T, g)
    one = GridRule(rule.bits, -1, rule.symmetric, rule.rule, rule.search)
    bounds = []
    for rows in weight.split(64):  # bounds the memory; rows do not see each other
        grouped = rows.unflatten(1, (-1, group))  # (R, G, g)
        full = grouped.abs().amax(-1)
        wanted = torch.einsum("gtc,rgc->rgt", used, grouped)
        best, least = full.clone(), torch.full_like(full, float("inf"))
        for i in range(int(max_shrink * grid)):
            bound = full * (1 - i / grid)
            clipped = grouped.clamp(-bound[..., None], bound[..., None])
            flat = clipped.flatten(0, 1)
            near = one(flat).nearest(flat).view_as(grouped)
            error = (torch.einsum("gtc,rgc->rgt", used, near) - wanted).square().mean(-1)
            better = error < least
            least, best = torch.where(better, error, least), torch.where(better, bound, best)
        bounds.append(best)
    return torch.cat(bounds)


def clip_weight(weight: Tensor, bound: Tensor) -> Tensor:
    """Clamp each group (bound (rows, groups)) of a matrix symmetrically."""
    grouped = weight.unflatten(1, (bound.shape[1], -1))
    return grouped.clamp(-bound[..., None], bound[..., None]).flatten(1)


class _Inputs:
    """What a block's linear layers and its attention see in the float model."""

    def __init__(self, block: nn.Module, stream: BlockStream) -> None:
        self.linear: dict[str, list[Tensor]] = {}
        self.attention: list[dict[str, Any]] = []

        def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kwargs = {"hidden_states": args[0], **kwargs} if args else kwargs
            self.attention.append(dict(kwargs))

        attention = block.self_attn
        handle = attention.register_forward_pre_hook(keep, with_kwargs=True)  # type: ignore[union-attr]
        try:
            observe_inputs(block, stream, lambda n, x: self.linear.setdefault(n, []).append(x))
        finally:
            handle.remove()

    def tokens(self, name: str) -> Tensor:
        """(T, features), all inputs of a layer."""
        return torch.cat([x.reshape(-1, x.shape[-1]) for x in self.linear[name]])


def scale_block(block: nn.Module, stream: BlockStream, rule: GridRule) -> dict[ScaleGroup, Tensor]:
    """Search all groups on the float block, before any is applied.

    Args:
        block: a Llama-like block.
        stream: its float inputs.
        rule: the grid.

    Returns:
        group -> scale (features,).
    """
    inputs = _Inputs(block, stream)
    linears = block_linears(block)
    found = {}
    for group in scale_groups(block):
        x = inputs.tokens(group.layers[0])
        module = block.get_submodule(group.inspect)

        def run(module: nn.Module = module, x: Tensor = x, name: str = group.inspect) -> Tensor:
            if name != "self_attn":
                return module(x)
            return torch.cat([module(**call)[0].flatten(0, -2) for call in inputs.attention])

        layers = [linears[name] for name in group.layers]
        found[group] = search_scale(run, layers, x, rule)
    return found


def apply_scales(block: nn.Module, scales: Mapping[ScaleGroup, Tensor]) -> None:
    """Fold scales into what feeds the layers; the block computes the same as before."""
    linears = block_linears(block)
    for group, scale in scales.items():
        layers = [linears[name] for name in group.layers]
        before = block.get_submodule(group.before)
        if isinstance(before, nn.Linear):
            with torch.no_grad():
                before.weight.div_(scale[:, None])
                if before.bias is not None:
                    before.bias.div_(scale)
                for layer in layers:
                    layer.weight.mul_(scale)
        else:
            fold_scale(before, layers, scale)


def awq_language(
    model: nn.Module,
    data: Data,
    *,
    clip: bool,
    search_batches: int,
    activation_bits: int,
    attention: bool,
    **grid: Any,
) -> Outcome:
    """Scale, clip and round every block; statistics come from the float stream.

    Args:
        model: a Llama-like language model, changed in place.
        data: calibration batches.
        clip: whether weights are clipped.
        search_batches: how many of the batches the searches use (scaling runs each 20 times).
        activation_bits: of the linear layers' inputs, a token, asymmetric; 0: float. Set at the
            end: nothing is searched with them.
        attention: quantize q, k and v with as many bits.
        grid: of ``GridRule``; ``search`` other than ``none`` tunes ranges within the searches
            too, ``weighted`` (by the mean squares of what the scaled layer gets) in place of
            the clipping.
    """
    rule = GridRule(**grid)
    if rule.search == "weighted" and clip:
        raise ValueError("AWQ's clipping is a search of its own: with 'weighted', clip=False")
    names = block_names(model)
    quantized: dict[str, QuantizedWeight] = {}
    chosen = data.batches[:search_batches]
    with torch.no_grad():
        for index, block, stream in walk_blocks(model, chosen, data.progress):
            apply_scales(block, scale_block(block, stream, rule))
            inputs = _Inputs(block, stream)  # already divided by the scales
            for name, linear in block_linears(block).items():
                weight, x = linear.weight.float(), inputs.tokens(name)
                if clip and not name.endswith(UNCLIPPED):
                    weight = clip_weight(weight, search_clip(weight, x, rule))
                importance = x.square().mean(0)
                quantized[f"{names[index]}.{name}"] = round_to_nearest(weight, rule, importance)
        # The float stream feeds every block, so weights are rounded at the end.
        for name, weight in quantized.items():
            model.get_submodule(name).weight.copy_(weight.dequantize())  # type: ignore[operator]
    quantize_inputs(model, InputRule(activation_bits, "token_asymmetric", attention))
    return weights_outcome(model, quantized)
