"""The GPU backend of :mod:`papers_shared.kernels.binary_conv2d`, in Triton.

Two kernels: one packs the activations into words of 32 channels, one convolves them and combines.
With ``TRITON_INTERPRET=1`` both run on CPU tensors in Triton's interpreter, slowly: the tests use
that, and compile the kernels for NVIDIA GPUs without running them. They have not been run, nor
timed, on a GPU.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from papers_shared.kernels.layout import memory_format

if TYPE_CHECKING:
    from papers_shared.kernels.binary_conv2d import Operands

_WORD = 32  # channels in a word: GPUs count the bits of 32-bit registers
_BLOCK_PIXELS, _BLOCK_CHANNELS = 64, 32


@triton.jit
def _popcount(v, NATIVE: tl.constexpr):
    """Set bits of each uint32, as int32; shifts and masks where there is no instruction for it."""
    if NATIVE:
        count = tl.inline_asm_elementwise(
            "popc.b32 $0, $1;", "=r,r", [v], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        v = v - ((v >> 1) & 0x55555555)
        v = (v & 0x33333333) + ((v >> 2) & 0x33333333)
        v = (v + (v >> 4)) & 0x0F0F0F0F
        v = v + (v >> 8)
        v = v + (v >> 16)
        count = (v & 0x3F).to(tl.int32)
    return count


@triton.jit
def _pack(
    x, bits, marks, marked, threshold, pixels, channels, width,
    stride_b, stride_c, stride_h, stride_w,
    padded_height, padded_width, pad_h, pad_w, words,
    FLIPPED: tl.constexpr, BLOCK: tl.constexpr, WORD: tl.constexpr,
):  # fmt: skip
    """Words of ``bits`` (above the threshold) and ``marks`` (on it); ``marked`` tells of any."""
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    bit = tl.arange(0, WORD)
    channel = word * WORD + bit
    row, column = pixel // width, pixel % width
    inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    places = (row * stride_h + column * stride_w)[:, None] + (channel * stride_c)[None, :]
    limit = tl.load(threshold)
    value = tl.load(x + image * stride_b + places, mask=inside, other=0.0)
    above, below = (value > limit) & inside, (value < limit) & inside
    on = inside & (above == 0) & (below == 0)
    if FLIPPED:
        above = below
    shift = bit.to(tl.uint32)[None, :]
    packed = tl.sum(above.to(tl.uint32) << shift, axis=1)
    mark = tl.sum(on.to(tl.uint32) << shift, axis=1)
    padded = (image * padded_height + row + pad_h) * padded_width + column + pad_w
    tl.store(bits + padded * words + word, packed.to(tl.int32, bitcast=True), mask=pixel < pixels)
    tl.store(marks + padded * words + word, mark.to(tl.int32, bitcast=True), mask=pixel < pixels)
    if tl.sum(mark != 0, axis=0) > 0:
        tl.store(marked + image, 1)


@triton.jit
def _convolve(
    bits, marks, marked, weight, a, b, e, base, valid, total, row_class, column_class,
    positive, negative, residual, y,
    column_classes, channels, out_height, out_width, padded_height, padded_width, words,
    kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w,
    y_b, y_c, y_h, y_w,
    RESIDUAL: tl.constexpr, SLOPES: tl.constexpr, NATIVE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """One block of output pixels and channels of one image."""
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    image = tl.program_id(2).to(tl.int64)
    pixel_inside, o_inside = pixel < out_height * out_width, o < channels
    row, column = pixel // out_width, pixel % out_width
    start = (row * stride_h * padded_width + column * stride_w) * words
    start += image * padded_height * padded_width * words
    any_mark = tl.load(marked + image) != 0

    x = tl.zeros((BLOCK_P, BLOCK_O), tl.int32)
    x_marks = tl.zeros((BLOCK_P, BLOCK_O), tl.int32)
    t = tl.zeros((BLOCK_P,), tl.int32)
    for tap in range(kernel_h * kernel_w):
        i, j = tap // kernel_w, tap % kernel_w
        offset = (i * dilation_h * padded_width + j * dilation_w) * words
        for k in range(words):
            w = tl.load(weight + (tap * words + k) * channels + o, mask=o_inside, other=0)
            w = w.to(tl.uint32, bitcast=True)[None, :]
            word = tl.load(bits + start + offset + k, mask=pixel_inside, other=0)
            word = word.to(tl.uint32, bitcast=True)
            x += _popcount(word[:, None] ^ w, NATIVE)
            t += 2 * _popcount(word, NATIVE)
            if any_mark:
                mark = tl.load(marks + start + offset + k, mask=pixel_inside, other=0)
                mark = mark.to(tl.uint32, bitcast=True)
                x_marks += _popcount(mark[:, None] ^ w, NATIVE)
                t += _popcount(mark, NATIVE)

    group = tl.load(row_class + row, mask=pixel_inside, other=0) * column_classes
    group += tl.load(column_class + column, mask=pixel_inside, other=0)
    mask = pixel_inside[:, None] & o_inside[None, :]
    at = group[:, None] * channels + o[None, :]
    s = tl.load(base + at, mask=mask, other=0) - 2 * x
    if any_mark:
        s += tl.load(total + o, mask=o_inside, other=0)[None, :] - x_marks
    t -= tl.load(valid + group, mask=pixel_inside, other=0)
    constant = tl.load(e + at, mask=mask, other=0.0)
    factor_s = tl.load(a + o, mask=o_inside, other=0.0)[None, :]
    factor_t = tl.load(b + o, mask=o_inside, other=0.0)[None, :]
    kind = constant.dtype
    value = (factor_s * s.to(kind) + factor_t * t.to(kind)[:, None]) + constant
    place = image * y_b + o[None, :] * y_c + (row * y_h + column * y_w)[:, None]
    if RESIDUAL:
        value += tl.load(residual + place, mask=mask, other=0.0)
    if SLOPES:
        up = tl.load(positive + o, mask=o_inside, other=0.0)[None, :]
        down = tl.load(negative + o, mask=o_inside, other=0.0)[None, :]
        value *= tl.where(value > 0, up, down)
    tl.store(y + place, value, mask=mask)


def unavailable(device: torch.device) -> str | None:
    """Why the kernels cannot run on tensors of this device; None where they can."""
    if device.type == "cuda" or _interpreted():
        return None
    return f"the tensors are on {device}; Triton needs a CUDA device (or TRITON_INTERPRET=1)"


class TritonConvolution:
    """The operands in the layout of the kernels; called with (x, residual or None)."""

    def __init__(self, operands: Operands) -> None:
        weight, device = operands.weight, operands.a.device
        halves = weight.words().to(device).view(torch.int32)  # two words of 32 from each of 64
        words = (weight.in_channels + _WORD - 1) // _WORD
        halves = halves[..., :words].flatten(1)
        self._words = words
        self._weight = halves.T.contiguous()  # (taps * words, O): neighbours are channels
        self._total = weight.bit_tensor().sum((1, 2)).to(device=device, dtype=torch.int32)
        self._threshold = torch.tensor([operands.threshold], device=device, dtype=operands.a.dtype)
        self._operands = operands

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        o, words = self._operands, self._words
        o.check(x, residual)
        x = x.detach()
        batch, channels, height, width = x.shape
        out_height, out_width = len(o.row_class), len(o.column_class)
        out_channels = o.weight.out_channels
        layout = memory_format(x)
        y = torch.empty(
            (batch, out_channels, out_height, out_width),
            dtype=x.dtype, device=x.device, memory_format=layout,
        )  # fmt: skip
        if residual is not None:
            residual = residual.detach().contiguous(memory_format=layout)
        if y.numel() == 0:
            return y
        padded = (height + 2 * o.padding[0], width + 2 * o.padding[1])
        bits = x.new_zeros((batch, *padded, words), dtype=torch.int32)
        marks, marked = torch.zeros_like(bits), bits.new_zeros(batch)
        pixels = height * width
        _pack[(triton.cdiv(pixels, _BLOCK_PIXELS), words, batch)](
            x, bits, marks, marked, self._threshold, pixels, channels, width, *x.stride(),
            *padded, *o.padding, words,
            FLIPPED=o.flipped, BLOCK=_BLOCK_PIXELS, WORD=_WORD,
        )  # fmt: skip
        positive, negative = o.slopes if o.slopes is not None else (o.a, o.a)
        grid = (
            triton.cdiv(out_height * out_width, _BLOCK_PIXELS),
            triton.cdiv(out_channels, _BLOCK_CHANNELS),
            batch,
        )
        _convolve[grid](
            bits, marks, marked, self._weight, o.a, o.b, o.e, o.base, o.valid, self._total,
            o.row_class, o.column_class, positive, negative, y if residual is None else residual,
            y, o.column_classes, out_channels, out_height, out_width, *padded, words,
            *o.weight.kernel_size, *o.stride, *o.dilation, *y.stride(),
            RESIDUAL=residual is not None, SLOPES=o.slopes is not None, NATIVE=_native(),
            BLOCK_P=_BLOCK_PIXELS, BLOCK_O=_BLOCK_CHANNELS, **_EXACT,
        )  # fmt: skip
        return y


# Rounded like the reference: no fused multiply-adds.
_EXACT: dict[str, Any] = {"enable_fp_fusion": False}


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _native() -> bool:
    return torch.version.cuda is not None and not _interpreted()
