"""The GPU backend of :mod:`papers_shared.kernels.adafm`, in Triton.

One kernel: a block of patches is read where it lies (any memory format, no permuted copies),
normalised if a group norm goes before, multiplied by the sample's matrix and written back. The
product is in full float32, never TF32.

With ``TRITON_INTERPRET=1`` it runs on CPU tensors in Triton's interpreter, slowly: the tests use
that, and compile the kernel for NVIDIA GPUs without running it. It has not been run, nor timed, on
a GPU.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from papers_shared.kernels.adafm import adafm_matrix, matrix_form
from papers_shared.kernels.layout import memory_format

_BLOCK = 64  # patches of a program
_LARGEST_PATCH = 8  # side of the largest patch: its matrix must fit in shared memory


@triton.jit
def _multiply(
    x, matrix, scale, shift, y, patches, channels, rows, columns,
    x_b, x_c, x_h, x_w, y_b, y_c, y_h, y_w,
    P: tl.constexpr, PIXELS: tl.constexpr, LAST: tl.constexpr, NORM: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK patches of one image; PIXELS is P * P, or 16 where that is more (tl.dot's least)."""
    patch = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(1).to(tl.int64)
    if LAST:  # neighbours in memory are neighbours in the block
        channel, place = patch % channels, patch // channels
    else:
        channel, place = patch // (rows * columns), patch % (rows * columns)
    row, column = P * (place // columns), P * (place % columns)
    pixel = tl.arange(0, PIXELS)
    i, j = pixel // P, pixel % P
    mask = (patch < patches)[:, None] & (pixel < P * P)[None, :]
    at = (channel * x_c + row * x_h + column * x_w)[:, None] + (i * x_h + j * x_w)[None, :]
    value = tl.load(x + image * x_b + at, mask=mask, other=0.0).to(tl.float32)
    if NORM:
        factor = tl.load(scale + image * channels + channel, mask=patch < patches, other=0.0)
        addend = tl.load(shift + image * channels + channel, mask=patch < patches, other=0.0)
        value = value * factor[:, None] + addend[:, None]
    inner = (pixel < P * P)[:, None] & (pixel < P * P)[None, :]
    place_m = image * P * P * P * P + pixel[:, None] * (P * P) + pixel[None, :]
    weight = tl.load(matrix + place_m, mask=inner, other=0.0)
    product = tl.dot(value, weight, input_precision="ieee")
    at = (channel * y_c + row * y_h + column * y_w)[:, None] + (i * y_h + j * y_w)[None, :]
    tl.store(y + image * y_b + at, product.to(y.dtype.element_ty), mask=mask)


def unavailable(x: Tensor, patch_size: int) -> str | None:
    """Why the kernel cannot run on ``x``; None where it can."""
    if x.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on {x.device}; Triton needs a CUDA device (or TRITON_INTERPRET=1)"
    if x.dtype == torch.float64:
        return "the kernel computes in float32, the input is float64"
    if patch_size > _LARGEST_PATCH:
        return f"patch_size={patch_size} is above {_LARGEST_PATCH}"
    return None


def multiply(
    x: Tensor, gains: Tensor, patch_size: int, affine: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """AdaFM of x, or of ``scale * x + shift`` with ``affine`` = (scale, shift), (B, C) float32.

    No gradients. The result has x's dtype and memory format.
    """
    batch, channels, height, width = x.shape
    layout = memory_format(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)
    if y.numel() == 0:
        return y
    matrix = adafm_matrix(gains.to(torch.float32), patch_size).contiguous()
    scale, shift = (matrix, matrix) if affine is None else affine  # unread without affine
    rows, columns = height // patch_size, width // patch_size
    patches = channels * rows * columns
    _multiply[(triton.cdiv(patches, _BLOCK), batch)](
        x, matrix, scale, shift, y, patches, channels, rows, columns, *x.stride(), *y.stride(),
        P=patch_size, PIXELS=max(16, triton.next_power_of_2(patch_size**2)),
        LAST=layout is torch.channels_last, NORM=affine is not None, BLOCK=_BLOCK,
    )  # fmt: skip
    return y


def group_norm_affine(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, num_groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """(B, C) float32 ``scale`` and ``shift``: the group norm of x is ``scale * x + shift``."""
    batch, channels = x.shape[:2]
    groups = x.float().unflatten(1, (num_groups, -1))
    variance, mean = torch.var_mean(groups, dim=(2, 3, 4), correction=0)
    scale = torch.rsqrt(variance + eps)[..., None].expand(-1, -1, channels // num_groups)
    if weight is not None:
        scale = scale * weight.float().view(num_groups, -1)
    shift = -mean[..., None] * scale
    if bias is not None:
        shift = shift + bias.float().view(num_groups, -1)
    return scale.reshape(batch, channels), shift.reshape(batch, channels)


class TritonAdaFM(torch.autograd.Function):
    """The kernel forwards; backwards the matrix form, worked out again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gains: Tensor, patch_size: int) -> Tensor:
        ctx.save_for_backward(x, gains)
        ctx.patch_size = patch_size
        return multiply(x, gains, patch_size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, gains = (t.detach() for t in ctx.saved_tensors)
        x.requires_grad_(ctx.needs_input_grad[0])
        gains.requires_grad_(ctx.needs_input_grad[1])
        with torch.enable_grad():
            y = matrix_form(x, gains, ctx.patch_size)
        wanted = [t for t in (x, gains) if t.requires_grad]
        grads = iter(torch.autograd.grad(y, wanted, grad))
        x_grad, gains_grad = (next(grads) if t.requires_grad else None for t in (x, gains))
        return x_grad, gains_grad, None
