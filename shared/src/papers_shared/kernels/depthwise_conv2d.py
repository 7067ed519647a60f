"""Depthwise convolution whose training in bfloat16 on a CPU is not slower than in float32.

oneDNN has no fast weight gradient of a depthwise convolution in bfloat16 (about forty times the
time of its float32 one); here that one gradient is worked out in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution of each channel by itself, size kept.

    Args:
        x: (B, C, H, W).
        weight: (C, 1, k, k), k odd.
        bias: (C,).

    Returns:
        (B, C, H, W), in autocast's type where that is on.
    """
    padding, groups = weight.shape[-1] // 2, weight.shape[0]
    reduced = torch.is_autocast_enabled("cpu") or x.dtype == torch.bfloat16
    if not (reduced and x.device.type == "cpu" and torch.is_grad_enabled()):
        return F.conv2d(x, weight, bias, padding=padding, groups=groups)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    y = _Depthwise.apply(x.to(dtype), weight.to(dtype))
    return y if bias is None else y + bias.to(dtype)[:, None, None]


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            to_x = _gradients(grad, x, weight, (True, False, False))[0]
        if ctx.needs_input_grad[1]:
            wanted = (False, True, False)
            to_weight = _gradients(grad.float(), x.float(), weight.float(), wanted)[1]
            to_weight = None if to_weight is None else to_weight.to(weight.dtype)
        return to_x, to_weight


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, ...]:
    padding, groups = weight.shape[-1] // 2, weight.shape[0]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, (1, 1), (padding,) * 2, (1, 1), False, (0, 0), groups, wanted
    )
