"""SmoothQuant: activation outliers go into the weights, where they do less harm.

Source: Xiao et al., arXiv 2211.10438; CBQ sheet 4.7 (their code).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from papers_shared.language_models import (
    LAYOUTS,
    block_layout,
    block_linears,
    block_names,
    find_blocks,
    observe_inputs,
    walk_blocks,
)
from papers_shared.quantization import (
    FakeQuantLinear,
    GridRule,
    QuantizedWeight,
    quantize_attention,
    round_to_nearest,
)
from papers_shared.quantization.layers import Activation
from transformer_compression.core import Data, Outcome
from transformer_compression.quantize.walk import weights_outcome


def norm_groups(block: nn.Module) -> list[tuple[nn.Module, list[str]]]:
    """The norms of a block with the linear layers that read each.

    Raises:
        ValueError: a block into whose norms scales cannot be folded.
    """
    pairs = LAYOUTS[block_layout(block)]
    linears = block_linears(block)
    return [
        (block.get_submodule(pair.before), list(pair.linears))
        for pair in pairs
        if pair.before not in linears
    ]


def smoothing_scale(largest: Tensor, weights: Sequence[Tensor], alpha: float) -> Tensor:
    """``s_c = max|X_c|^alpha / max|W_:c|^(1 - alpha)`` over all rows of all layers behind a norm.

    Args:
        largest: (features,), largest magnitude of each channel.
        weights: (rows, features) each.
        alpha: 0 leaves the activations, 1 makes them flat.

    Returns:
        (features,), at least 1e-5.
    """
    rows = torch.cat([w.detach().abs().amax(0, keepdim=True) for w in weights]).amax(0)
    return (largest.pow(alpha) / rows.clamp(min=1e-5).pow(1 - alpha)).clamp(min=1e-5)


@torch.no_grad()
def fold_scale(norm: nn.Module, linears: Sequence[nn.Linear], scale: Tensor) -> None:
    """Divide a norm's output by ``scale`` and multiply its readers' columns; outputs stay."""
    norm.weight.div_(scale)  # type: ignore[operator]
    if getattr(norm, "bias", None) is not None:
        norm.bias.div_(scale)  # type: ignore[operator]
    for linear in linears:
        linear.weight.mul_(scale)


@torch.no_grad()
def smooth_model(model: nn.Module, data: Data, alpha: float) -> None:
    """Smooth every block in place; the model computes the same as before."""
    for _, block, stream in walk_blocks(model, data.batches, data.progress):
        linears = block_linears(block)
        groups = norm_groups(block)
        largest = {names[0]: torch.zeros(linears[names[0]].in_features) for _, names in groups}

        def observe(name: str, x: Tensor, largest: dict[str, Tensor] = largest) -> None:
            seen = x.abs().reshape(-1, x.shape[-1]).amax(0).float()
            largest[name] = torch.maximum(largest[name].to(seen), seen)

        observe_inputs(block, stream, observe, linears={n: linears[n] for n in largest})
        for norm, names in groups:
            layers = [linears[n] for n in names]
            scale = smoothing_scale(largest[names[0]], [m.weight for m in layers], alpha)
            fold_scale(norm, layers, scale)


@dataclass(frozen=True)
class InputRule:
    """How activations are quantized on the fly.

    Attributes:
        bits: of the linear layers' inputs; 0: float.
        per: see ``papers_shared.quantization.fake_quantize_activation``.
        attention: also quantize q, k and v, a token and head, asymmetrically.
    """

    bits: int
    per: Activation = "token"
    attention: bool = False

    def apply(self, block: nn.Module) -> None:
        """Let a block compute so, in place; its weights stay the same parameters."""
        if not self.bits:
            return
        for name, linear in block_linears(block).items():
            parent, _, child = name.rpartition(".")
            layer = FakeQuantLinear(linear, bits=self.bits, per=self.per).train(linear.training)
            setattr(block.get_submodule(parent), child, layer)
        if self.attention:
            quantize_attention(block, self.bits)

    def note(self, model: nn.Module) -> None:
        """Keep it in the model's config, so that a saved model can be reloaded."""
        if self.bits:
            model.config.quantized_inputs = asdict(self)  # type: ignore[union-attr]


def quantize_inputs(model: nn.Module, rule: InputRule) -> None:
    """Apply a rule to all blocks of a causal language model, in place."""
    for block in find_blocks(model):
        rule.apply(block)
    rule.note(model)


def smoothquant_language(
    model: nn.Module, data: Data, *, alpha: float, bits: int, activation_bits: int, per: Activation
) -> Outcome:
    """Smooth, then quantize weights a row and activations on the fly.

    Args:
        model: a causal language model, changed in place.
        data: calibration batches.
        alpha: 0.5 for OPT, to 0.85 for Llama.
        bits: of the weights.
        activation_bits: of the inputs; 0: not quantized.
        per: ``token`` or ``tensor``.
    """
    if alpha:
        smooth_model(model, data, alpha)
    rule = GridRule(bits, symmetric=True, rule="smoothquant", search="none")
    quantized: dict[str, QuantizedWeight] = {}
    with torch.no_grad():
        for prefix, block in zip(block_names(model), find_blocks(model), strict=True):
            for name, linear in block_linears(block).items():
                weight = round_to_nearest(linear.weight.float(), rule)
                linear.weight.copy_(weight.dequantize())
                quantized[f"{prefix}.{name}"] = weight
    quantize_inputs(model, InputRule(activation_bits, per))
    return weights_outcome(model, quantized)
