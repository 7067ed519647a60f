"""The GPU backend of :mod:`papers_shared.kernels.window_channel_attention`, in Triton.

One program a window and head: q, k and v are read where they lie (any memory format, no windows are
copied), normalised, multiplied and written back; the matrices of channels never leave the chip. The
shifted windows are a second launch that blends into the first one's result: every pixel inside
belongs to one of them. Products are in full float32, never TF32.

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

from papers_shared.kernels.layout import memory_format
from papers_shared.kernels.window_channel_attention import Branch, fused_form, share

_LARGEST_HEAD = 128  # channels: q, k, v and the matrix of a window must fit on the chip
_LARGEST_WINDOW = 16


@triton.jit
def _attend(
    qkv, temperature, affine, ratio, y, width, channels, columns, offset,
    x_b, x_c, x_h, x_w, y_b, y_c, y_h, y_w,
    WINDOW: tl.constexpr, BLEND: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """One window, one head; CHANNELS and POSITIONS are powers of two, 16 at least (tl.dot's)."""
    window = tl.program_id(0)
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel, position = tl.arange(0, CHANNELS), tl.arange(0, POSITIONS)
    row = WINDOW * (window // columns) + offset + position // WINDOW
    column = WINDOW * (window % columns) + offset + position % WINDOW
    mask = (channel < width)[:, None] & (position < WINDOW * WINDOW)[None, :]
    place = (head * width + channel)[:, None] * x_c + (row * x_h + column * x_w)[None, :]
    start = qkv + image * x_b
    q = tl.load(start + place, mask=mask, other=0.0).to(tl.float32)
    k = tl.load(start + channels * x_c + place, mask=mask, other=0.0).to(tl.float32)
    v = tl.load(start + 2 * channels * x_c + place, mask=mask, other=0.0).to(tl.float32)
    here = head * WINDOW * WINDOW + position
    inside = position < WINDOW * WINDOW
    a = tl.load(affine + here, mask=inside, other=0.0)
    q, k = q * a[None, :], k * a[None, :]
    q = q / tl.maximum(tl.sqrt(tl.sum(q * q, 1)), 1e-12)[:, None]
    k = k / tl.maximum(tl.sqrt(tl.sum(k * k, 1)), 1e-12)[:, None]
    logits = tl.dot(q, tl.trans(k), input_precision="ieee") * tl.load(temperature + head)
    logits = tl.where((channel < width)[None, :], logits, float("-inf"))
    weight = tl.exp(logits - tl.max(logits, 1)[:, None])
    weight = weight / tl.sum(weight, 1)[:, None]
    value = tl.dot(weight, v, input_precision="ieee")
    place = (head * width + channel)[:, None] * y_c + (row * y_h + column * y_w)[None, :]
    if BLEND:
        r = tl.load(ratio + here, mask=inside, other=0.0)[None, :]
        before = tl.load(y + image * y_b + place, mask=mask, other=0.0)
        value = before + r * (value - before)
    tl.store(y + image * y_b + place, value, mask=mask)


def unavailable(qkv: Tensor, heads: int, window: int) -> str | None:
    """Why the kernel cannot run on ``qkv``; None where it can."""
    if qkv.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return (
            f"the tensors are on {qkv.device}; Triton needs a CUDA device (or TRITON_INTERPRET=1)"
        )
    if qkv.dtype == torch.float64:
        return "the kernel computes in float32, the input is float64"
    if qkv.shape[1] // (3 * heads) > _LARGEST_HEAD:
        return f"a head has more than {_LARGEST_HEAD} channels"
    if window > _LARGEST_WINDOW:
        return f"windows of {window}x{window} are above {_LARGEST_WINDOW}"
    return None


def attend(qkv: Tensor, base: Branch, shifted: Branch | None) -> Tensor:
    """The whole operator; arguments as of ``window_channel_attention``, parameters in float32."""
    empty = torch.empty(0, device=qkv.device)
    parameters = (*base, *(shifted or (empty, empty, empty)))
    y: Tensor = TritonWindowChannelAttention.apply(qkv, shifted is not None, *parameters)
    return y


def _forward(qkv: Tensor, base: Branch, shifted: Branch | None) -> Tensor:
    layout = memory_format(qkv)
    batch, triple, height, width = qkv.shape
    # The blend reads what was written: in float32, to be rounded once.
    y = torch.empty(batch, triple // 3, height, width, device=qkv.device, memory_format=layout)
    if y.numel():
        _launch(qkv, base, base[2], y, offset=0, blend=False)
        if shifted is not None:
            half = base[2].shape[-1] // 2
            _launch(qkv, shifted, share(base, shifted), y, offset=half, blend=True)
    return y.to(qkv.dtype)


def _launch(
    qkv: Tensor, branch: Branch, ratio: Tensor, y: Tensor, *, offset: int, blend: bool
) -> None:
    temperature, affine, mask = branch
    heads, window = mask.shape[1:3]
    batch, channels, height, width = y.shape
    rows, columns = (height - 2 * offset) // window, (width - 2 * offset) // window
    head = channels // heads
    _attend[(rows * columns, heads, batch)](
        qkv, temperature.contiguous(), affine.contiguous(), ratio.contiguous(), y, head, channels,
        columns, offset, *qkv.stride(), *y.stride(), WINDOW=window, BLEND=blend,
        CHANNELS=max(16, triton.next_power_of_2(head)),
        POSITIONS=max(16, triton.next_power_of_2(window**2)),
    )  # fmt: skip


class TritonWindowChannelAttention(torch.autograd.Function):
    """The kernel forwards; backwards the fused form, worked out again."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, has_shifted: bool, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(qkv, *parameters)
        ctx.has_shifted = has_shifted
        return _forward(qkv, *_branches(has_shifted, parameters))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = [t.detach() for t in ctx.saved_tensors]
        needs = [ctx.needs_input_grad[0], *ctx.needs_input_grad[2:]]
        for tensor, need in zip(saved, needs, strict=True):
            tensor.requires_grad_(need)
        with torch.enable_grad():
            base, shifted = _branches(ctx.has_shifted, tuple(saved[1:]))
            y = fused_form(saved[0].float(), base, shifted).to(saved[0].dtype)
        wanted = [t for t in saved if t.requires_grad]
        grads = iter(torch.autograd.grad(y, wanted, grad, allow_unused=True))
        found = [next(grads) if t.requires_grad else None for t in saved]
        return found[0], None, *found[1:]


def _branches(has_shifted: bool, parameters: tuple[Tensor, ...]) -> tuple[Branch, Branch | None]:
    t, a, m, t2, a2, m2 = parameters
    return (t, a, m), ((t2, a2, m2) if has_shifted else None)
