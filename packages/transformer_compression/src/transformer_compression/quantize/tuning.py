"""Quantizers learned block by block: OmniQuant's weight clipping, AutoRound's signed gradients.

A block's output under quantized weights and quantized inputs is brought near its output in the
float model; the next block then sees what the quantized ones before it really give.

Source: OmniQuant, arXiv 2308.13137; AutoRound, arXiv 2309.05516; CBQ sheet 4.7 (their code).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers_shared.language_models import (
    BlockStream,
    block_linears,
    block_names,
    capture_inputs,
    find_blocks,
    observe_inputs,
    run_block,
)
from papers_shared.quantization import (
    Grid,
    GridRule,
    QuantizedWeight,
    grid_from_range,
)
from transformer_compression.core import Data, Outcome
from transformer_compression.quantize.smooth import InputRule
from transformer_compression.quantize.walk import InputMoments, add_inputs, weights_outcome


class WeightQuantizer(nn.Module):
    """What the two methods share: a frozen weight and its range ends, (rows, groups).

    Args:
        weight: (rows, inputs).
        rule: of the grid whose ends are the first range.
        importance: (inputs,), mean squares of the inputs, where the rule's search asks for them.
    """

    weight: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, weight: Tensor, rule: GridRule, importance: Tensor | None = None) -> None:
        super().__init__()
        self.rule = rule
        self.group = weight.shape[1] if rule.group == -1 else rule.group
        if weight.shape[1] % self.group:
            raise ValueError(f"{weight.shape[1]} inputs do not divide into groups of {self.group}")
        values = weight.detach().float()
        if rule.search == "none":
            grouped = values.unflatten(1, (-1, self.group))
            low, high = grouped.amin(-1), grouped.amax(-1)
        else:
            low, high = range_ends(rule(values, importance), rule)
        self.register_buffer("weight", values)
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def ends(self) -> tuple[Tensor, Tensor]:
        """The range's ends as learned so far."""
        raise NotImplementedError(f"{type(self).__name__} does not say its range")

    def offset(self) -> Tensor | float:
        """What is added before rounding, in steps."""
        return 0.0

    def grid(self) -> Grid:
        """The grid as learned so far, differentiable."""
        return grid_from_range(
            *self.ends(),
            bits=self.rule.bits,
            group=self.group,
            symmetric=self.rule.symmetric,
            rule=self.rule.rule,
        )

    def forward(self) -> Tensor:
        """The quantized weight, with straight-through gradients."""
        return self.grid().nearest_ste(self.weight, self.offset())

    @torch.no_grad()
    def harden(self) -> QuantizedWeight:
        """The codes of the present parameters."""
        grid = self.grid()
        scale = grid.scale[..., None]
        steps = (self.weight.unflatten(1, (-1, self.group)) / scale).flatten(1) + self.offset()
        codes = (steps.round().unflatten(1, (-1, self.group)) + grid.zero[..., None]).flatten(1)
        return QuantizedWeight(codes.clamp(0, grid.top).to(torch.uint8), grid)


def range_ends(grid: Grid, rule: GridRule) -> tuple[Tensor, Tensor]:
    """The range (rows, groups) each of which ``grid_from_range`` makes this grid.

    Raises:
        ValueError: a symmetric grid of a rule whose range ends elsewhere.
    """
    if not grid.symmetric:
        return -grid.zero * grid.scale, (grid.top - grid.zero) * grid.scale
    if rule.rule not in ("portable", "gptq"):
        raise ValueError(f"a searched symmetric range needs rule='portable', not {rule.rule!r}")
    reach = grid.scale * grid.top / 2
    return -reach, reach


class LearnedClipping(WeightQuantizer):
    """LWC: both ends times a sigmoid that starts at 0.982.

    Source: OmniQuant; CBQ sheet 4.7.
    """

    def __init__(self, weight: Tensor, rule: GridRule, importance: Tensor | None = None) -> None:
        super().__init__(weight, rule, importance)
        self.upper = nn.Parameter(torch.full_like(self.high, 4.0))
        self.lower = nn.Parameter(torch.full_like(self.low, 4.0))

    def ends(self) -> tuple[Tensor, Tensor]:
        return self.lower.sigmoid() * self.low, self.upper.sigmoid() * self.high


class SignedRounding(WeightQuantizer):
    """AutoRound: an offset to every weight before rounding, and a factor to each range end.

    Source: AutoRound; CBQ sheet 4.7.
    """

    def __init__(self, weight: Tensor, rule: GridRule, importance: Tensor | None = None) -> None:
        super().__init__(weight, rule, importance)
        self.value = nn.Parameter(torch.zeros_like(self.weight))
        self.shrink_low = nn.Parameter(torch.ones_like(self.low))
        self.shrink_high = nn.Parameter(torch.ones_like(self.high))

    def ends(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():  # in place: torch's clamp has no gradient at its own ends
            self.shrink_low.clamp_(0, 1)
            self.shrink_high.clamp_(0, 1)
        return self.shrink_low * self.low.clamp(max=0), self.shrink_high * self.high.clamp(min=0)

    def offset(self) -> Tensor:
        return self.value


@dataclass
class BlockLosses:
    """First and best loss of each block."""

    first: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)


Step = Callable[[int], None]
Optimizer = Callable[[list[nn.Parameter]], Step]


def tune_blocks(
    model: nn.Module,
    data: Data,
    make: Callable[[Tensor, Tensor], WeightQuantizer],
    optimizer: Optimizer,
    *,
    inputs: InputRule,
    steps: int,
    seed: int,
    both_streams: bool = False,
    keep_best: bool = False,
) -> tuple[dict[str, QuantizedWeight], BlockLosses]:
    """Learn the quantizers of every block, one block after the other, and round the weights.

    Args:
        model: a causal language model, changed in place.
        data: calibration batches, one a step.
        make: the quantizer of a weight, given the mean squares of its inputs in the float model.
        optimizer: given a block's parameters, returns ``step(index)`` that updates them.
        inputs: how the block that is tuned quantizes its activations.
        steps: updates a block.
        seed: of the order of the batches.
        both_streams: add the error on the quantized stream to the float block's output there.
        keep_best: end with the parameters of the lowest loss seen.

    Returns:
        module name -> codes, and the losses.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: expected 1 or more")
    model.eval().requires_grad_(False)
    names = block_names(model)
    draw = random.Random(seed)
    clean = capture_inputs(model, data.batches)
    dirty = BlockStream(list(clean.hidden), clean.arguments)
    quantized: dict[str, QuantizedWeight] = {}
    losses = BlockLosses()
    blocks = find_blocks(model)
    for index, block in enumerate(blocks):
        linears = block_linears(block)
        seen = {n: InputMoments(m.in_features, m.weight.device) for n, m in linears.items()}
        targets = observe_inputs(block, clean, partial(add_inputs, seen))
        same = run_block(block, dirty).hidden if both_streams else None
        inputs.apply(block)
        linears = block_linears(block)
        quantizers = {
            name: make(linear.weight, seen[name].mean_square()) for name, linear in linears.items()
        }
        for quantizer, linear in zip(quantizers.values(), linears.values(), strict=True):
            quantizer.to(linear.weight.device)
        parameters = [p for q in quantizers.values() for p in q.parameters()]
        update = optimizer(parameters)
        best, least = None, float("inf")
        for step in range(steps):
            at = draw.randrange(len(dirty.hidden))
            weights = {f"{name}.weight": q() for name, q in quantizers.items()}
            with torch.enable_grad():
                out = _call(block, weights, dirty.hidden[at], dirty.arguments[at])
                loss = F.mse_loss(out, targets.hidden[at])
                if same is not None:
                    loss = loss + F.mse_loss(out, same[at])
            value = loss.item()
            if step == 0:
                losses.first.append(value)
            if keep_best and value < least:
                best = [p.detach().clone() for p in parameters]
            least = min(least, value)
            for parameter, gradient in zip(
                parameters, torch.autograd.grad(loss, parameters), strict=True
            ):
                parameter.grad = gradient
            update(step)
        if best is not None:
            with torch.no_grad():
                for parameter, value_then in zip(parameters, best, strict=True):
                    parameter.copy_(value_then)
        losses.best.append(least)
        with torch.no_grad():
            for name, quantizer in quantizers.items():
                hard = quantizer.harden()
                linears[name].weight.copy_(hard.dequantize())
                quantized[f"{names[index]}.{name}"] = hard
        clean, dirty = targets, run_block(block, dirty)
        data.progress(index + 1, len(blocks), "blocks")
    inputs.note(model)
    return quantized, losses


def _call(
    block: nn.Module, weights: Mapping[str, Tensor], hidden: Tensor, arguments: Mapping[str, Any]
) -> Tensor:
    out = torch.func.functional_call(block, dict(weights), (hidden,), dict(arguments))
    return out[0] if isinstance(out, tuple) else out


def lwc_language(
    model: nn.Module,
    data: Data,
    *,
    steps: int,
    seed: int,
    lr: float,
    both_streams: bool,
    activation_bits: int,
    attention: bool,
    **grid: Any,
) -> Outcome:
    """OmniQuant's learned weight clipping (AdamW, no weight decay).

    Args:
        model: a causal language model, changed in place.
        data: calibration batches.
        steps: updates a block, a batch each; theirs: 20 passes over 128 segments.
        seed: of the order of batches.
        lr: theirs: 1e-2.
        both_streams: their ``aug_loss``.
        activation_bits: of the linear layers' inputs, a token, asymmetric; 0: float.
        attention: quantize q, k and v with as many bits.
        grid: of ``GridRule``; theirs starts at the smallest and largest values (``none``).
    """
    rule = GridRule(**grid)

    def adam(parameters: list[nn.Parameter]) -> Step:
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
        return lambda step: optimizer.step()

    quantized, losses = tune_blocks(
        model,
        data,
        lambda weight, importance: LearnedClipping(weight, rule, importance),
        adam,
        inputs=InputRule(activation_bits, "token_asymmetric", attention),
        steps=steps,
        seed=seed,
        both_streams=both_streams,
    )
    return weights_outcome(model, quantized, details=losses)


def autoround_language(
    model: nn.Module,
    data: Data,
    *,
    steps: int,
    seed: int,
    activation_bits: int,
    attention: bool,
    **grid: Any,
) -> Outcome:
    """AutoRound-style: ``p -= lr sign(gradient)``, lr ``1 / steps`` falling to 0 in a line.

    Args:
        model: a causal language model, changed in place.
        data: calibration batches.
        steps: updates a block, a batch each; theirs: 200 with 8 segments each.
        seed: of the order of batches.
        activation_bits: of the linear layers' inputs, a token, asymmetric; 0: float.
        attention: quantize q, k and v with as many bits.
        grid: of ``GridRule``; theirs starts at the smallest and largest values (``none``).
    """
    rule = GridRule(**grid)
    peak = (2 if rule.bits <= 3 and steps >= 1000 else 1) / steps

    def sign(parameters: list[nn.Parameter]) -> Step:
        @torch.no_grad()
        def step(index: int) -> None:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=peak * (1 - index / steps))

        return step

    quantized, losses = tune_blocks(
        model,
        data,
        lambda weight, importance: SignedRounding(weight, rule, importance),
        sign,
        inputs=InputRule(activation_bits, "token_asymmetric", attention),
        steps=steps,
        seed=seed,
        keep_best=True,
    )
    return weights_outcome(model, quantized, details=losses)
