"""Layers that compute as if quantized (activations on the fly, learned steps), and on codes."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from papers_shared.kernels.packed_linear import PackedLinear, pack_linear
from papers_shared.quantization.grids import QuantizedWeight, round_ste

Activation = Literal["none", "token", "tensor", "token_asymmetric"]


class QuantizeToken(torch.autograd.Function):
    """Asymmetric codes a token, range times a learned factor; gradients straight through.

    ``s = factor (max - min) / qmax``, ``z = round(-min qmax / (max - min))`` whatever the factor,
    ``x^ = (clamp(round(x / s) + z, 0, qmax) - z) s``. The gradient of x passes inside the range;
    that of the factor is LSQ's, ``(q - z) - x/s`` inside and ``q - z`` outside, times
    ``(max - min) / qmax``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, bits: int) -> Tensor:
        top = 2**bits - 1
        values = x.float()
        low, high = values.aminmax(dim=-1, keepdim=True)
        spread = ((high - low) / top).clamp_(1e-5, 1e4)
        zero = (-low / spread).round_()
        step = spread * factor.float()
        position = values / step
        units = position.round().add_(zero).clamp_(0, top).sub_(zero)
        out = (units * step).to(x.dtype)
        if any(ctx.needs_input_grad[:2]):
            inside = (position.round() - units).abs_() == 0
            residue = units - position * inside
            ctx.save_for_backward(inside, (residue * spread).to(x.dtype))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        inside, by_factor = ctx.saved_tensors
        return grad * inside, (grad.float() * by_factor.float()).sum().reshape(1), None


def fake_quantize_activation(x: Tensor, bits: int, per: Activation = "token") -> Tensor:
    """Quantize and dequantize inputs with a range found on the spot.

    Args:
        x: (..., features).
        bits: bits a code.
        per: ``token`` or ``tensor``: symmetric, ``s = max|x| / (2^(bits-1) - 1)``, SmoothQuant's;
            ``token_asymmetric``: OmniQuant's; ``none``: unchanged.

    Raises:
        ValueError: ``per`` is unknown.

    Source: CBQ sheet 3.2.
    """
    if per not in get_args(Activation):
        raise ValueError(f"per={per!r}: expected one of {', '.join(get_args(Activation))}")
    if per == "none":
        return x
    if per == "token_asymmetric":
        return QuantizeToken.apply(x, torch.ones(1, device=x.device), bits)
    largest = x.abs().amax(-1, keepdim=True) if per == "token" else x.abs().amax()
    scale = largest.clamp(min=1e-5) / (2 ** (bits - 1) - 1)
    return round_ste(x / scale) * scale


class FakeQuantLinear(nn.Linear):
    """A linear layer whose inputs are quantized on the fly; weights as they are.

    State dict and attributes are those of ``nn.Linear``, so checkpoints stay ordinary.

    Args:
        linear: the layer whose parameters it takes over (shared, not copied).
        bits: of the inputs.
        per: see ``fake_quantize_activation``.
    """

    def __init__(self, linear: nn.Linear, *, bits: int, per: Activation = "token") -> None:
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.weight, self.bias = linear.weight, linear.bias
        self.activation_bits = bits
        self.per: Activation = per

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return super().forward(fake_quantize_activation(x, self.activation_bits, self.per))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, inputs={self.activation_bits} bits per {self.per}"


class _LSQ(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x, step)
        ctx.ends = low, high
        return torch.round((x / step).clamp(low, high)) * step

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, step = ctx.saved_tensors
        low, high = ctx.ends
        ratio = x / step
        inside = (ratio >= low) & (ratio <= high)
        by_step = torch.where(inside, ratio.round() - ratio, ratio.clamp(low, high))
        by_step = grad * by_step
        for dim, size in enumerate(step.shape):
            if size == 1 and by_step.shape[dim] != 1:
                by_step = by_step.sum(dim, keepdim=True)
        elements = x.numel() // step.numel()
        return grad * inside, by_step.reshape(step.shape) / math.sqrt(elements * high), None, None


def lsq(x: Tensor, step: Tensor, *, bits: int, signed: bool = True) -> Tensor:
    """``round(clamp(x / s, low, high)) s`` with LSQ's gradient to the step.

    Args:
        x: any shape.
        step: positive, as many dimensions as ``x``; size 1 where it is shared.
        bits: bits a code.
        signed: low = -2^(bits-1), else 0.

    Returns:
        like ``x``. Gradient to x inside the range only; to s: ``round(x/s) - x/s`` inside, low or
        high outside, times ``1 / sqrt(elements a step * high)``.

    Source: LSQ (Esser et al., ICLR 2020); sheet 4.10.
    """
    if step.ndim != x.ndim:
        raise ValueError(f"the step has {step.ndim} dimensions, x has {x.ndim}; use size 1")
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return _LSQ.apply(x, step, low, high)


def packed_layer(weight: QuantizedWeight, bias: Tensor | None = None) -> PackedLinear:
    """A linear layer that computes on packed codes, as RTN, GPTQ or CBQ leave them.

    for name, weight in quantized.items():  # module name -> QuantizedWeight
        model.set_submodule(name, packed_layer(weight, model.get_submodule(name).bias))

    Args:
        weight: of 2, 3 or 4 bits.
        bias: (out,) or None.

    Raises:
        ValueError: see :func:`papers_shared.kernels.packed_linear.pack_linear`.
    """
    grid = weight.grid
    packed = pack_linear(weight.codes, grid.scale, grid.zero, bits=grid.bits, group=grid.group)
    return PackedLinear(packed, bias)
