"""The GPU backend of :mod:`papers_shared.kernels.nvsm`, in Triton.

One kernel: a program reads the queries of up to 64 pixels of a window where they lie (any memory
format, no gathered copies), goes over the window's keys and values with a running softmax, and
writes the result to where its pixels belong. Products are in full float32, never TF32.

Maps are never stored. What a shared attention keeps is the queries, from which the maps of its
window are made again: they are d wide, the maps w^2.

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

from papers_shared.kernels import nvsm
from papers_shared.kernels.layout import memory_format
from papers_shared.kernels.nvsm_layout import Group, pixels

_WIDEST = 128  # channels of queries or values of a group: a block of them must fit in registers


@triton.jit
def _attend(
    q, v, y, q_pixels, v_pixels, y_pixels,
    q_b, q_c, q_p, v_b, v_c, v_p, y_b, y_c, y_p,
    N: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK pixels of a window of N; D channels, padded to WIDTH. Pixels are int64."""
    blocks = (N + BLOCK - 1) // BLOCK
    window, image = tl.program_id(0) // blocks, tl.program_id(1).to(tl.int64)
    offset = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, WIDTH)
    in_width = (channel < D)[None, :]
    place = tl.load(q_pixels + window * N + offset, mask=offset < N, other=-1)
    query = tl.load(
        q + image * q_b + place[:, None] * q_p + channel[None, :] * q_c,
        mask=(place >= 0)[:, None] & in_width, other=0.0,
    ).to(tl.float32)  # fmt: skip
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    sums = tl.zeros((BLOCK, WIDTH), tl.float32)
    for start in range(0, N, BLOCK):
        at = start + tl.arange(0, BLOCK)
        k_place = tl.load(q_pixels + window * N + at, mask=at < N, other=-1)
        v_place = tl.load(v_pixels + window * N + at, mask=at < N, other=-1)
        key = tl.load(
            q + image * q_b + k_place[:, None] * q_p + channel[None, :] * q_c,
            mask=(k_place >= 0)[:, None] & in_width, other=0.0,
        ).to(tl.float32)  # fmt: skip
        value = tl.load(
            v + image * v_b + v_place[:, None] * v_p + channel[None, :] * v_c,
            mask=(v_place >= 0)[:, None] & in_width, other=0.0,
        ).to(tl.float32)  # fmt: skip
        scores = tl.dot(query, tl.trans(key), input_precision="ieee")
        scores = tl.where((at < N)[None, :], scores, float("-inf"))
        highest = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp(scores - highest[:, None])
        fade = tl.exp(largest - highest)
        total = total * fade + tl.sum(weights, 1)
        sums = sums * fade[:, None] + tl.dot(weights, value, input_precision="ieee")
        largest = highest
    target = tl.load(y_pixels + window * N + offset, mask=offset < N, other=0)
    tl.store(
        y + image * y_b + target[:, None] * y_p + channel[None, :] * y_c,
        (sums / total[:, None]).to(y.dtype.element_ty),
        mask=(offset < N)[:, None] & in_width,
    )


def unavailable(x: Tensor, groups: tuple[Group, ...]) -> str | None:
    """Why the kernel cannot run on ``x``, (B, groups * 2d, H, W); None where it can."""
    if x.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on {x.device}; Triton needs a CUDA device (or TRITON_INTERPRET=1)"
    if x.dtype == torch.float64:
        return "the kernel computes in float32, the input is float64"
    if (width := x.shape[1] // (2 * len(groups))) > _WIDEST:
        return f"{width} channels of queries a group are above {_WIDEST}"
    return None


def attention(x: Tensor, groups: tuple[Group, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Attention of x, (B, groups * 2d, H, W).

    Returns:
        (B, groups * d, H, W) in x's dtype and memory format, and the queries of each group,
        (B, d, H, W), parts of x.
    """
    parts = x.contiguous(memory_format=memory_format(x)).chunk(2 * len(groups), dim=1)
    queries = parts[::2]
    return TritonNVSM.apply(groups, groups, *queries, *parts[1::2]), queries


def shared(
    v: Tensor,
    queries: tuple[Tensor, ...],
    groups: tuple[Group, ...],
    made_for: tuple[Group, ...],
) -> Tensor:
    """Values v, (B, groups * d, H, W), under the maps of queries that :func:`attention` kept."""
    values = v.contiguous(memory_format=memory_format(v)).chunk(len(groups), dim=1)
    if queries[0].shape != values[0].shape:
        raise ValueError(
            f"values of shape {tuple(values[0].shape)} where the maps are of queries "
            f"{tuple(queries[0].shape)}; expected the size that the maps were made for"
        )
    return TritonNVSM.apply(made_for, groups, *queries, *values)


def _launch(
    made_for: tuple[Group, ...], groups: tuple[Group, ...], queries: Any, values: Any
) -> Tensor:
    """The kernel for every group; queries are cut as ``made_for`` says, values as ``groups``.

    Both are channels of dense tensors, so that pixels lie at one stride.
    """
    batch, d, height, width = values[0].shape
    last = values[0].stride(1) == 1 < values[0].stride(3)
    y = torch.empty(
        (batch, d * len(groups), height, width),
        dtype=values[0].dtype,
        device=values[0].device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )
    for q, v, out, of_q, of_v in zip(
        queries, values, y.chunk(len(groups), dim=1), made_for, groups, strict=True
    ):
        q_pixels, _ = pixels(of_q, height, width, v.device)
        v_pixels, y_pixels = pixels(of_v, height, width, v.device)
        n = of_q.window**2
        padded = max(16, triton.next_power_of_2(d))
        most = 64 if padded <= 64 else 32  # pixels whose sums fit in registers
        block = min(most, max(16, triton.next_power_of_2(n)))
        strides = [t.stride(dim) for t in (q, v, out) for dim in (0, 1, 3)]
        _attend[(height * width // n * triton.cdiv(n, block), batch)](
            q, v, out, q_pixels, v_pixels, y_pixels, *strides,
            N=n, D=d, WIDTH=padded, BLOCK=block,
        )  # fmt: skip
    return y


class TritonNVSM(torch.autograd.Function):
    """The kernel forwards; backwards the form of the backend ``fast``, worked out again."""

    @staticmethod
    def forward(
        ctx: Any, made_for: tuple[Group, ...], groups: tuple[Group, ...], *parts: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*parts)
        ctx.groups = (made_for, groups)
        return _launch(made_for, groups, parts[: len(groups)], parts[len(groups) :])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[2:]
        parts = [
            t.detach().float().requires_grad_(need)
            for t, need in zip(ctx.saved_tensors, needed, strict=True)
        ]
        count = len(parts) // 2
        made_for, groups = ctx.groups
        with torch.enable_grad():
            y = nvsm.from_queries(made_for, groups, parts[:count], parts[count:])
        wanted = [t for t in parts if t.requires_grad]
        grads = iter(torch.autograd.grad(y, wanted, grad.float()))
        own = (
            next(grads).to(t.dtype) if need else None
            for t, need in zip(ctx.saved_tensors, needed, strict=True)
        )
        return None, None, *own
