"""Training with quantized weights and learned steps (LSQ), for language and vision models.

Source: LSQ, Esser et al., ICLR 2020; LLM-QAT (distillation from the float model) and PEQA (only
the steps are trained) as variants; sheet 4.10.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from papers_shared.language_models import block_linears, block_names, find_blocks
from papers_shared.quantization import Grid, QuantizedWeight, lsq
from transformer_compression.core import Data, Outcome
from transformer_compression.quantize.walk import weights_outcome

Train = Literal["all", "scales"]
LEARNED_INPUTS = "learned_inputs"  # in config.json: bits of the inputs whose steps were learned
INPUT_STEP = ".input_quantizer.step"


class LearnedStep(nn.Module):
    """A weight (rows, inputs) on a symmetric grid with one learned step a row.

    Args:
        weight: where the step starts: ``2 mean|w| / sqrt(largest code)``.
        bits: bits a code.
    """

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        top = 2 ** (bits - 1) - 1
        start = 2 * weight.detach().abs().mean(1, keepdim=True) / math.sqrt(top)
        self.step = nn.Parameter(start.clamp(min=1e-8))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grid."""
        return lsq(weight, self.step.clamp(min=1e-8), bits=self.bits)

    def quantized(self, weight: Tensor) -> QuantizedWeight:
        """Its codes."""
        middle = 2 ** (self.bits - 1)
        step = self.step.detach().clamp(min=1e-8)
        codes = torch.round((weight.detach() / step).clamp(-middle, middle - 1)) + middle
        grid = Grid(step, torch.full_like(step, middle), self.bits, weight.shape[1], True)
        return QuantizedWeight(codes.to(torch.uint8), grid)


class LearnedStepInput(nn.Module):
    """Inputs of a layer on a grid with one learned step; it starts at the first batch.

    Args:
        bits: bits a code, signed.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.step = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(..., features), quantized."""
        if self.step == 0:
            top = 2 ** (self.bits - 1) - 1
            self.step.data.copy_(2 * x.detach().abs().mean() / math.sqrt(top))
        step = self.step.clamp(min=1e-8).reshape([1] * x.ndim)
        return lsq(x, step, bits=self.bits)


def quantize_input(linear: nn.Linear, bits: int) -> LearnedStepInput:
    """Let a layer quantize its inputs; the step is in its state dict."""
    quantizer = LearnedStepInput(bits).to(linear.weight.device)
    linear.input_quantizer = quantizer
    linear.register_forward_pre_hook(lambda m, a: (m.input_quantizer(a[0]), *a[1:]))
    return quantizer


@torch.no_grad()
def restore_inputs(model: nn.Module, state: Mapping[str, Tensor], bits: int) -> None:
    """``quantize_input`` for the layers whose steps a state dict holds, with those steps."""
    for key, step in state.items():
        name = key.removesuffix(INPUT_STEP)
        if name != key:
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            quantize_input(linear, bits).step.copy_(step)


def quantized_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the blocks of a language model or a timm vision transformer."""
    if hasattr(model, "blocks"):
        pairs = [(f"blocks.{i}", block) for i, block in enumerate(model.blocks)]  # type: ignore[arg-type]
    else:
        pairs = list(zip(block_names(model), find_blocks(model), strict=True))
    return {f"{p}.{n}": linear for p, block in pairs for n, linear in block_linears(block).items()}


def lsq_train(
    model: nn.Module,
    data: Data,
    *,
    bits: int,
    activation_bits: int,
    steps: int,
    lr: float,
    train: Train,
    seed: int,
) -> Outcome:
    """Train with quantized weights; the float model's logits are the target.

    Args:
        model: a causal language model or a timm vision transformer, changed in place.
        data: batches to train on, drawn in random order.
        bits: of the weights.
        activation_bits: of the layers' inputs; 0: not quantized.
        steps: updates (Adam), a batch each.
        lr: of weights and steps alike; the steps' gradient is scaled as LSQ says.
        train: ``all``, or ``scales``: the weights stay, only the steps move (PEQA).
        seed: of the order of the batches.

    Raises:
        ValueError: nothing to train, or another ``train``.
    """
    if train not in ("all", "scales"):
        raise ValueError(f"train={train!r}: expected all or scales")
    if steps < 1:
        raise ValueError(f"steps={steps}: expected 1 or more")
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    model.eval().requires_grad_(False)
    linears = quantized_linears(model)
    trained: list[Any] = []
    for linear in linears.values():
        quantizer = LearnedStep(linear.weight, bits)
        parametrize.register_parametrization(linear, "weight", quantizer)
        trained.append(quantizer.step.requires_grad_())
        if train == "all":
            trained.append(_parametrization(linear).original.requires_grad_())
        if activation_bits:
            trained.append(quantize_input(linear, activation_bits).step)
    optimizer = torch.optim.Adam(trained, lr=lr)
    draw = random.Random(seed)
    device = next(model.parameters()).device
    losses = []
    for step in range(steps):
        batch = data.batches[draw.randrange(len(data.batches))].to(device)
        with torch.no_grad():
            target = _logits(teacher, batch).log_softmax(-1)
        ours = _logits(model, batch).log_softmax(-1)
        loss = F.kl_div(
            ours.flatten(0, -2), target.flatten(0, -2), reduction="batchmean", log_target=True
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        data.progress(step + 1, steps, "updates")
    quantized = {}
    with torch.no_grad():
        for name, linear in linears.items():
            parametrization = _parametrization(linear)
            hard = parametrization[0].quantized(parametrization.original)
            parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)
            linear.weight.copy_(hard.dequantize())
            quantized[name] = hard
    if activation_bits and hasattr(model, "config"):
        setattr(model.config, LEARNED_INPUTS, activation_bits)
    return weights_outcome(model.requires_grad_(True), quantized, details={"loss": losses})


def _parametrization(linear: nn.Module) -> Any:
    return linear.parametrizations.weight  # type: ignore[union-attr]


def _logits(model: nn.Module, batch: Tensor) -> Tensor:
    out = model(batch)
    return (out if isinstance(out, Tensor) else out.logits).float()
