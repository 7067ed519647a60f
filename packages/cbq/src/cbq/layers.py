"""The linear layer that is reconstructed: learned rounding, learned steps, quantized inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbq.rounding import RoundWeight, rectified_sigmoid, split_codes
from papers_shared.quantization import Grid, QuantizedWeight, QuantizeToken

SMALLEST_FACTOR = 0.5  # of a token's range, the least that is learned


@dataclass(frozen=True)
class Start:
    """Where a layer's training begins.

    Attributes:
        weight: (out, in), what is rounded: the weight itself, or GPTQ's compensated columns.
        grid: scales and zero points.
        kind: ``zero`` (soft rounding of one half everywhere), ``adaround`` (the fractional part;
            hard, that is rounding to nearest) or ``gptq`` (the same, of the compensated columns).
    """

    weight: Tensor
    grid: Grid
    kind: str


class CBQLinear(nn.Module):
    """A linear layer with learnable rounding, weight step and activation step.

    Args:
        linear: gives the bias.
        start: codes and grid to start from.
        rank: of the logits' change; 0: a full matrix (AdaRound).
        act_bits: of the inputs; 16 and more: float.
        generator: draws A1 (unit normal over sqrt(rank)); A2 starts as zeros.
        refloor: take ``floor(W / S)`` anew with the step of the moment, without a gradient.

    Attributes:
        logits_0: (out, groups, size), V0.
        lower: the same, ``floor(W / S)`` within the range.
        step_ratio: (out, groups, 1), learned: the step over the one of the start.
        act_factor: (1,), learned: share of a token's range, 0.5 to 1.
        hard: whether the forward pass rounds.

    Source: section 3.3 of the sheet's paper, our names.
    """

    logits_0: Tensor
    lower: Tensor
    step_0: Tensor
    zero: Tensor
    position: Tensor | None

    def __init__(
        self,
        linear: nn.Linear,
        start: Start,
        *,
        rank: int = 5,
        act_bits: int = 16,
        generator: torch.Generator | None = None,
        refloor: bool = False,
    ) -> None:
        super().__init__()
        grid = start.grid
        self.bits, self.group, self.symmetric = grid.bits, grid.group, grid.symmetric
        self.shape = linear.weight.shape
        self.act_bits, self.rank, self.hard = act_bits, rank, True
        self.bias = linear.bias
        grouped = start.weight.detach().float().unflatten(1, (-1, grid.group))
        step, zero = (t.float()[..., None].clone() for t in (grid.scale, grid.zero))
        # The grid's own division, so that a code of the start is exactly round(W/S) + z.
        lower, logits = split_codes(grouped / step, zero, grid.top)
        if start.kind == "zero":
            logits = torch.where(logits.abs() < 60, torch.zeros_like(logits), logits)
        self.register_buffer("logits_0", logits)
        self.register_buffer("lower", lower)
        self.register_buffer("step_0", step)
        self.register_buffer("zero", zero)
        self.register_buffer("position", grouped if refloor else None)
        out, inputs = self.shape
        if rank:
            draw = torch.randn(out, rank, generator=generator) / rank**0.5
            self.A1 = nn.Parameter(draw.to(step.device))
            self.A2 = nn.Parameter(torch.zeros(rank, inputs, device=step.device))
        else:
            self.V = nn.Parameter(torch.zeros(out, inputs, device=step.device))
        self.step_ratio = nn.Parameter(torch.ones_like(step))
        self.act_factor = nn.Parameter(torch.ones(1, device=step.device))

    def logits(self) -> Tensor:
        """V, (out, groups, size)."""
        change = self.A1 @ self.A2 if self.rank else self.V
        return self.logits_0 + change.view_as(self.logits_0)

    def soft_rounding(self) -> Tensor:
        """dW, (out, groups, size), in [0, 1]."""
        return rectified_sigmoid(self.logits())

    def lower_codes(self) -> Tensor:
        """``floor(W/S) - `` as the step of the moment has it, code less zero point."""
        if self.position is None:
            return self.lower
        step = (self.step_0 * self.step_ratio).detach()
        top = 2**self.bits - 1
        return ((self.position / step).floor() + self.zero).clamp(0, top - 1) - self.zero

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(out, in), quantized (hard) or on the way to it (soft)."""
        left, right = (self.A1, self.A2) if self.rank else (self.V, None)
        step = self.step_0 * self.step_ratio
        lower = self.lower_codes()
        return RoundWeight.apply(left, right, step, self.logits_0, lower, self.hard, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.act_bits < 16:
            x = QuantizeToken.apply(x, self.act_factor, self.act_bits)
        dtype = x.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.linear(x.to(dtype), self.weight(dtype), bias)

    @torch.no_grad()
    def harden(self) -> QuantizedWeight:
        """The codes as they now are, with steps as float16 can hold them."""
        units = self.lower_codes() + (self.logits() >= 0)
        step = self.step_0 * self.step_ratio
        # Exactly what files store; 2^-14 is float16's smallest normal number.
        scale = step.clamp_min(2.0**-14).half().float()
        codes = (units + self.zero).flatten(1).to(torch.uint8)
        grid = Grid(scale[..., 0], self.zero[..., 0], self.bits, self.group, self.symmetric)
        return QuantizedWeight(codes, grid)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep what is learned within its bounds; after every step."""
        self.act_factor.clamp_(SMALLEST_FACTOR, 1)
        self.step_ratio.clamp_(0.1, 10)

    def extra_repr(self) -> str:
        out, inputs = self.shape
        return (
            f"{inputs}, {out}, W{self.bits}A{self.act_bits}, group={self.group}, rank={self.rank}"
        )


class HardLinear(nn.Linear):
    """The finished layer: dequantized weights, and inputs quantized on the fly.

    Its state dict is that of ``nn.Linear``; ``act_factor`` is kept apart.

    Args:
        weight: (out, in), dequantized.
        bias: (out,) or None.
        act_bits: of the inputs; 16 and more: float.
        act_factor: (1,), share of a token's range.
    """

    act_factor: Tensor

    def __init__(
        self, weight: Tensor, bias: nn.Parameter | None, *, act_bits: int, act_factor: Tensor
    ) -> None:
        out, inputs = weight.shape
        with torch.device("meta"):
            super().__init__(inputs, out, bias is not None)
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.register_parameter("bias", bias)
        self.act_bits = act_bits
        self.register_buffer("act_factor", act_factor, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.act_bits < 16:
            x = QuantizeToken.apply(x, self.act_factor, self.act_bits)
        return super().forward(x)
