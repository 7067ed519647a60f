"""Convolution of two-valued activations with two-valued weights: XOR, popcount, one combination.

Operators elsewhere know the values -1 and +1 only. Here both sets are any two reals:

- activations are binarised at a ``threshold``: ``scale * s + center`` with ``s = sign(x -
  threshold)`` (``-sign`` for a negative scale), in {-1, +1}, and 0 exactly at the threshold as
  ``torch.sign`` has it;
- weights of output channel ``o`` are ``scale[o] * s_w + center[o]`` with ``s_w`` in {-1, +1};
- zero padding is added after binarisation, so padded positions hold 0, neither of the values.

With ``m`` = 1 inside the picture and 0 on the padding, the convolution falls apart into

    y[o] = alpha   * scale[o]  * conv(s, s_w[o])     S: XOR and popcount, the heavy term
         + alpha   * center[o] * conv(s, ones)       T: one map for all output channels
         + c       * scale[o]  * conv(m, s_w[o])     constants: they depend on the border
         + c       * center[o] * conv(m, ones)       class of the output pixel alone

(``alpha``, ``c``: activation scale and center). In bits (1 for +1; 0 for -1, on padded pixels and
in the unused tail of a word), with C channels, V valid taps at the output pixel, X the sum over
ALL taps of ``popcount(a xor w)``, Q the sum of ``popcount(a)`` and k_t[o] the popcount of tap t:

    S = C V - 2 (X - sum of k_t[o] over padded taps)        T = 2 Q - C V
    conv(m, s_w[o]) = sum of (2 k_t[o] - C) over valid taps  conv(m, ones) = C V

S and T are exact integers on every backend: |S|, |T| <= n = C * kh * kw, X <= n, 2 Q <= 2 n, and
``pack_weight`` requires ``n < 2**24``, so int32 cannot overflow and float32 holds every sum. Only
``y = (a S + b T) + e[border class]`` is rounded, in this order and without fused multiply-adds:
the CPU paths give the same bits as the reference in plain torch. Combining the integers S and T
instead of X and Q saves the cancellation of two large terms.

An input exactly at the threshold (or NaN) has s = 0. Where one occurs, z marks those positions
and ``conv(z, s_w) = popcount(w) - X(z)``, ``conv(z, ones) = popcount(z)`` are added to S and T: a
second pass, half the speed, and only for images that need it.

A batch norm folds into the weight's two values and the bias; a residual and a two-slope
activation are applied as the result is stored. Inference only: no gradients.

Source: AdaBin (ECCV 2022), inference with XNOR and popcount; the border terms are worked out here.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from papers_shared.kernels.layout import memory_format
from papers_shared.kernels.packed_binary_weight import PackedBinaryWeight

Convolution = Callable[[Tensor, Tensor | None], Tensor]  # (x, residual) -> y


@dataclass(frozen=True, eq=False)
class Operands:
    """Everything of one convolution but its input, for one input size, dtype and device.

    Attributes:
        input_shape: (C, H, W).
        a, b: (O,) factors of S and T.
        e: (classes, O) the constant terms and the bias.
        base: (classes, O) int32, ``C V + 2 * popcount(padded taps)``, so that S = base - 2 X.
        valid: (classes,) int32, ``C V``.
        row_class, column_class: (OH,), (OW,) int32; the border class of an output pixel is
            ``row_class * column_classes + column_class``.
        flipped: the activation scale is negative: s = sign(threshold - x).
    """

    weight: PackedBinaryWeight
    input_shape: tuple[int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    threshold: float
    flipped: bool
    a: Tensor
    b: Tensor
    e: Tensor
    base: Tensor
    valid: Tensor
    row_class: Tensor
    column_class: Tensor
    column_classes: int
    slopes: tuple[Tensor, Tensor] | None

    def check(self, x: Tensor, residual: Tensor | None) -> None:
        """Raise ValueError unless these constants were made for ``x`` and ``residual``."""
        if tuple(x.shape[1:]) != self.input_shape or x.dtype != self.a.dtype:
            raise ValueError(
                f"input of {tuple(x.shape)}, {x.dtype}: the constants were made for "
                f"(batch, *{self.input_shape}), {self.a.dtype}"
            )
        shape = (len(x), self.weight.out_channels, len(self.row_class), len(self.column_class))
        if residual is not None and (residual.shape != shape or residual.dtype != x.dtype):
            raise ValueError(
                f"residual of {tuple(residual.shape)}, {residual.dtype}: "
                f"the result is {shape}, {x.dtype}"
            )


def prepare(
    weight: PackedBinaryWeight,
    like: Tensor,
    *,
    threshold: float,
    activation_scale: float,
    activation_center: float,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    bias: Tensor | None = None,
    slopes: tuple[Tensor, Tensor] | None = None,
) -> Operands:
    """The constants of :func:`binary_conv2d` for inputs of ``like``'s size, dtype and device.

    Raises:
        ValueError: as :func:`binary_conv2d`.
    """
    if like.dim() != 4 or like.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"input of shape {tuple(like.shape)} and {like.dtype}: "
            "expected (batch, channels, height, width) of float32 or float64"
        )
    if like.shape[1] != weight.in_channels:
        raise ValueError(
            f"input has {like.shape[1]} channels, the weight {weight.in_channels} "
            "(grouped convolution is not supported: groups must be 1)"
        )
    if activation_scale == 0 or activation_scale != activation_scale:
        raise ValueError(
            f"activation_scale={activation_scale}: the two activation values must differ"
        )
    steps = {"stride": _pair(stride), "padding": _pair(padding), "dilation": _pair(dilation)}
    for name, least in (("stride", 1), ("padding", 0), ("dilation", 1)):
        if min(steps[name]) < least:
            raise ValueError(f"{name}={steps[name]}: expected integers from {least} up")

    for what, values in (("bias", bias), ("slopes", slopes)):
        for value in [values] if isinstance(values, Tensor) else values or ():
            if value.shape != (weight.out_channels,):
                raise ValueError(
                    f"{what} of shape {tuple(value.shape)}: expected ({weight.out_channels},), "
                    "one value an output channel"
                )

    valid_taps, classes = [], []  # (classes, KH) or (classes, KW), and the class of each output
    for axis in (0, 1):
        size, kernel = like.shape[2 + axis], weight.kernel_size[axis]
        step, pad, spread = (steps[name][axis] for name in ("stride", "padding", "dilation"))
        count = (size + 2 * pad - spread * (kernel - 1) - 1) // step + 1
        if count < 1:
            raise ValueError(
                f"input of {tuple(like.shape[2:])} with padding {steps['padding']} is smaller "
                f"than the kernel {weight.kernel_size} at dilation {steps['dilation']}"
            )
        places = torch.arange(count)[:, None] * step - pad + torch.arange(kernel) * spread
        inside = (places >= 0) & (places < size)
        patterns, index = torch.unique(inside, dim=0, return_inverse=True)
        valid_taps.append(patterns.double())
        classes.append(index.to(torch.int32))

    # All constants in float64, rounded once.
    taps = torch.einsum("rh,cw->rchw", *valid_taps).flatten(0, 1).flatten(1)  # (classes, taps)
    ones = weight.bit_tensor().sum(-1).double().cpu()  # k: (O, taps)
    scale, center = (v.detach().double().cpu() for v in (weight.scale, weight.center))
    alpha, c, channels = float(activation_scale), float(activation_center), weight.in_channels
    valid = channels * taps.sum(1)
    interior = taps @ (2 * ones - channels).T  # conv(m, s_w): (classes, O)
    e = c * (scale * interior + center * valid[:, None])
    if bias is not None:
        e = e + bias.detach().double().cpu()
    base = valid[:, None] + 2 * (1 - taps) @ ones.T

    def real(v: Tensor) -> Tensor:
        return v.to(device=like.device, dtype=like.dtype).contiguous()

    def integer(v: Tensor) -> Tensor:
        return v.to(device=like.device, dtype=torch.int32).contiguous()

    return Operands(
        weight=weight,
        input_shape=(like.shape[1], like.shape[2], like.shape[3]),
        **steps,
        threshold=float(threshold),
        flipped=alpha < 0,
        a=real(alpha * scale),
        b=real(alpha * center),
        e=real(e),
        base=integer(base),
        valid=integer(valid),
        row_class=integer(classes[0]),
        column_class=integer(classes[1]),
        column_classes=valid_taps[1].shape[0],
        slopes=None if slopes is None else (real(slopes[0].detach()), real(slopes[1].detach())),
    )


def binary_conv2d(
    x: Tensor,
    weight: PackedBinaryWeight,
    *,
    threshold: float,
    activation_scale: float,
    activation_center: float,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    slopes: tuple[Tensor, Tensor] | None = None,
    backend: str = "auto",
) -> Tensor:
    """Binarise ``x`` and convolve it with a packed binary weight.

    The constants are worked out anew on every call; a layer keeps them, see
    :class:`~papers_shared.kernels.PackedBinaryConv2d`.

    Args:
        x: (B, C, H, W) float32 or float64, contiguous or channels_last for speed.
        weight: what :func:`pack_weight` gives.
        threshold: activations above it are ``activation_center + activation_scale``, those below
            ``activation_center - activation_scale``, those exactly on it ``activation_center``.
            It is rounded to ``x``'s dtype. For a negative scale above and below change places.
        activation_scale: half the (signed) distance of the two activation values; not 0.
        activation_center: the middle of the two activation values.
        stride, padding, dilation: as in ``torch.nn.functional.conv2d``; integers or pairs.
        bias: (O,), added last; a batch norm folds into it and the weight's scale and center.
        residual: (B, O, OH, OW), added to the result.
        slopes: two tensors (O,), positive and negative: after all else y becomes
            ``positive * relu(y) - negative * relu(-y)``.
        backend: ``auto`` (``triton`` for CUDA tensors, ``cpu`` for others, ``reference`` with a
            warning where that cannot run), ``reference`` (plain torch), ``cpu`` (popcount in
            C++; ``cpu:avx512``, ``cpu:avx2``, ``cpu:neon`` or ``cpu:portable`` for one
            instruction set) or ``triton``.

    Returns:
        (B, O, OH, OW) in ``x``'s dtype and memory format, without gradient.

    Raises:
        ValueError: shapes, dtypes or settings that do not fit.
        RuntimeError: the named backend cannot run on this machine.

    Source: this module's docstring.
    """
    operands = prepare(
        weight, x, threshold=threshold, activation_scale=activation_scale,
        activation_center=activation_center, stride=stride, padding=padding, dilation=dilation,
        bias=bias, slopes=slopes,
    )  # fmt: skip
    return convolution(operands, device=x.device, backend=backend)(x, residual)


def convolution(operands: Operands, *, device: torch.device, backend: str = "auto") -> Convolution:
    """The function (x, residual or None) -> y of one backend; see :func:`binary_conv2d`."""
    name, _, path = backend.partition(":")
    if name == "reference" and not path:
        return functools.partial(reference, operands)
    if name == "cpu" or (name == "auto" and not path and device.type == "cpu"):
        from papers_shared.kernels import binary_conv2d_cpu

        try:
            return binary_conv2d_cpu.CpuConvolution(operands, path=path or None)
        except binary_conv2d_cpu.ExtensionError as error:
            if name == "cpu":
                raise
            return _fall_back(operands, str(error))
    if name in ("triton", "auto") and not path:
        if importlib.util.find_spec("triton") is None:
            reason: str | None = "triton is not installed"
        else:
            from papers_shared.kernels import binary_conv2d_triton

            reason = binary_conv2d_triton.unavailable(device)
        if reason is None:
            return binary_conv2d_triton.TritonConvolution(operands)
        if name == "triton":
            raise RuntimeError(f"backend='triton' cannot run: {reason}")
        return _fall_back(operands, reason)
    raise ValueError(
        f"backend={backend!r}: expected auto, reference, cpu, cpu:PATH (avx512, avx2, neon, "
        "portable) or triton"
    )


def _fall_back(operands: Operands, reason: str) -> Convolution:
    _warn_once(
        f"binary_conv2d runs its slow reference in plain torch: {reason} "
        "(backend='reference' asks for this without a warning)"
    )
    return functools.partial(reference, operands)


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


@torch.no_grad()
def reference(operands: Operands, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """The definition in plain torch, on any device: what every other backend must equal."""
    o = operands
    o.check(x, residual)
    above, below = x > o.threshold, x < o.threshold
    signs = above.to(x.dtype) - below.to(x.dtype)
    signs = -signs if o.flipped else signs
    weight = o.weight.signs(x.dtype).to(x.device)
    # Sums of -1, 0, +1 below 2**24 are exact; rounding guards against transformed algorithms.
    convolve = functools.partial(
        F.conv2d, signs, stride=o.stride, padding=o.padding, dilation=o.dilation
    )
    s = convolve(weight).round()
    t = convolve(torch.ones_like(weight[:1])).round()
    classes = (o.row_class[:, None] * o.column_classes + o.column_class).long()
    e = o.e[classes].permute(2, 0, 1)
    y = (o.a[:, None, None] * s + o.b[:, None, None] * t) + e
    if residual is not None:
        y = y + residual
    if o.slopes is not None:
        positive, negative = (slope[:, None, None] for slope in o.slopes)
        y = torch.where(y > 0, positive, negative) * y
    return y.contiguous(memory_format=memory_format(x))


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
