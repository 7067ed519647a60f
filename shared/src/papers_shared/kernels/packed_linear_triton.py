"""The GPU backend of :mod:`papers_shared.kernels.packed_linear`, in Triton.

A program computes some rows for one input: the words of a chunk are loaded as they lie, a loop over
the codes of a lane shifts them out, and products with the 16 inputs that they meet are summed in
float32.

With ``TRITON_INTERPRET=1`` it runs on CPU tensors in Triton's interpreter, slowly: the tests use
that, and compile the kernel for NVIDIA GPUs without running it. It has not been run, nor timed, on
a GPU.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from papers_shared.kernels.packed_linear import LAYOUTS, MANY, UNIT, PackedLinearWeight

_BLOCKS = 8  # blocks of 4 rows a program


@triton.jit
def _codes(at, inside, V: tl.constexpr, BITS: tl.constexpr):
    """Codes of vector V of a chunk, (rows, 16)."""
    BIT: tl.constexpr = V * 3 if BITS == 3 else V // 2 * BITS + V % 2 * 16
    OFFSET: tl.constexpr = BIT % 32
    code = tl.load(at + BIT // 32 * 16, mask=inside[:, None], other=0).to(tl.uint32) >> OFFSET
    if OFFSET + BITS > 32:
        more = tl.load(at + (BIT // 32 + 1) * 16, mask=inside[:, None], other=0).to(tl.uint32)
        code = code | (more << (32 - OFFSET))
    return code & ((1 << BITS) - 1)


@triton.jit
def _multiply(
    x, words, scale, zero, y, blocks, chunks, groups, units_per_group, x_stride, y_stride,
    BITS: tl.constexpr, VECTORS: tl.constexpr, WORDS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """BLOCKS * 4 rows of one input; 16 codes a time (inputs 32 u + 2 l + h at 2 and 4 bits)."""
    token = tl.program_id(1)
    row = tl.program_id(0) * BLOCKS * 4 + tl.arange(0, BLOCKS * 4)
    lane = tl.arange(0, 16)
    inside = row < blocks * 4
    total = tl.zeros((BLOCKS * 4, 16), dtype=tl.float32)
    for chunk in range(chunks):
        place = ((row // 4 * chunks + chunk) * 4 + row % 4) * (WORDS * 16)
        at = words + place[:, None] + lane[None, :]
        for v in tl.static_range(VECTORS):
            code = _codes(at, inside, v, BITS)
            unit = chunk * (VECTORS // 2) + v // 2
            group = tl.minimum(unit // units_per_group, groups - 1)
            s = tl.load(scale + row * groups + group, mask=inside, other=0.0)
            z = tl.load(zero + row * groups + group, mask=inside, other=0.0)
            if BITS == 3:
                value = tl.load(x + token * x_stride + unit * 32 + v % 2 * 16 + lane)
            else:
                value = tl.load(x + token * x_stride + unit * 32 + 2 * lane + v % 2)
            total += (code.to(tl.float32) - z[:, None]) * s[:, None] * value[None, :]
    tl.store(y + token * y_stride + row, tl.sum(total, 1), mask=inside)


def unavailable(x: Tensor) -> str | None:
    """Why the kernel cannot run on ``x``; None where it can."""
    if x.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on {x.device}; Triton needs a CUDA device (or TRITON_INTERPRET=1)"
    return None


def multiply(x: Tensor, weight: PackedLinearWeight) -> Tensor:
    """(n, in) of any float type -> (n, out) float32, or more columns than that."""
    x = x.float()
    if len(x) >= MANY:
        return F.linear(x, weight.dequantize())
    padded = F.pad(x, (0, weight.inputs - weight.in_features)).contiguous()
    blocks, chunks, rows = weight.words.shape[:3]
    layout = LAYOUTS[weight.bits]
    y = torch.empty(len(x), blocks * rows, device=x.device)
    if len(x) == 0:
        return y
    _multiply[(triton.cdiv(blocks, _BLOCKS), len(x))](
        padded, weight.words, weight.scale, weight.zero, y, blocks, chunks, weight.scale.shape[1],
        -(-weight.group // UNIT), padded.stride(0), y.stride(0),
        BITS=weight.bits, VECTORS=layout.inputs // 16, WORDS=layout.words, BLOCKS=_BLOCKS,
    )  # fmt: skip
    return y
