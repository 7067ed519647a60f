"""Linear layers with packed weights of 2, 3 or 4 bits: ``y = x W^T``, ``W = (q - z) s``.

At batch 1 the product is bound by reading the weights: ``bits / 8`` bytes each, beside 4 of
float32. Codes are unpacked in registers, and products are summed in float32; the result is that of
the dequantized weights but for the order of summation. With many inputs at once the weights are
unpacked first and multiplied by torch.

    packed = pack_linear(codes, scale, zero, bits=4, group=64)
    y = packed_linear(x, packed)
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers_shared.packing import pack_bits, unpack_bits

ROWS = 4  # of a block of csrc/packed_linear.cpp
UNIT = 32  # inputs that every group is a multiple of
BITS = (2, 3, 4)
MANY = 24  # inputs from which on it is faster to unpack first


@dataclass(frozen=True)
class Layout:
    """How codes lie in a chunk: ``lanes`` bit streams of ``codes`` codes, ``words`` words wide.

    Code k of lane m is input ``lanes * k + m`` of the chunk.
    """

    lanes: int
    codes: int
    words: int

    @property
    def inputs(self) -> int:
        """Inputs of a chunk."""
        return self.lanes * self.codes


# With 2 and 4 bits lanes are 16 bits wide, with 3 bits three words of 32.
LAYOUTS = {2: Layout(32, 8, 1), 3: Layout(16, 32, 3), 4: Layout(32, 4, 1)}


@dataclass(frozen=True)
class PackedLinearWeight:
    """A packed matrix (out, in).

    Attributes:
        words: int32 (blocks of 4 rows, chunks, 4 rows, words, 16), see Layout. Inputs are filled
            up to whole chunks (128, 512 and 256 inputs at 4, 3 and 2 bits), rows to 4.
        scale, zero: (rows, groups) float32, rows filled up.
        bits, group, out_features, in_features: as given.
    """

    words: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    group: int
    out_features: int
    in_features: int

    @property
    def inputs(self) -> int:
        """Inputs with what fills them up."""
        return self.words.shape[1] * LAYOUTS[self.bits].inputs

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads of it."""
        return self.words.nbytes + self.scale.nbytes + self.zero.nbytes

    def codes(self) -> Tensor:
        """uint8 (out, in)."""
        layout = LAYOUTS[self.bits]
        words = self.words
        if layout.words > 1:
            words = words.transpose(-1, -2)
        streams = words.contiguous().view(torch.uint8).flatten(3).unflatten(3, (layout.lanes, -1))
        codes = unpack_bits(streams.contiguous(), count=layout.codes, bits=self.bits)
        # blocks, chunks, rows, lanes, codes -> rows, inputs
        codes = codes.permute(0, 2, 1, 4, 3).flatten(0, 1).flatten(1)
        return codes[: self.out_features, : self.in_features]

    def dequantize(self) -> Tensor:
        """float32 (out, in)."""
        rows = slice(0, self.out_features)
        codes = self.codes().float().unflatten(1, (-1, self.group))
        weight = (codes - self.zero[rows, :, None]) * self.scale[rows, :, None]
        return weight.flatten(1)

    def to(self, device: torch.device | str) -> PackedLinearWeight:
        """The same on another device."""
        words, scale, zero = (t.to(device) for t in (self.words, self.scale, self.zero))
        return replace(self, words=words, scale=scale, zero=zero)


def pack_linear(
    codes: Tensor, scale: Tensor, zero: Tensor, *, bits: int, group: int
) -> PackedLinearWeight:
    """Pack a matrix.

    Args:
        codes: uint8 (out, in), 0 .. 2^bits - 1.
        scale: (out, in / group).
        zero: the same, whole numbers from -128 to 128.
        bits: 2, 3 or 4.
        group: inputs a scale; ``in``, or a multiple of 32 that divides it.

    Raises:
        ValueError: sizes or bits that do not fit.
    """
    if bits not in BITS:
        raise ValueError(f"bits={bits}: expected one of {BITS}")
    out, inputs = codes.shape
    if inputs % group or (group != inputs and group % UNIT):
        raise ValueError(
            f"group={group} with {inputs} inputs: expected a multiple of {UNIT} that divides "
            f"them, or all of them"
        )
    if scale.shape != (out, inputs // group) or zero.shape != scale.shape:
        raise ValueError(
            f"scale {tuple(scale.shape)} and zero {tuple(zero.shape)}: expected "
            f"{(out, inputs // group)}"
        )
    if zero.numel() and zero.abs().max() > 128:
        raise ValueError(f"a zero point of {zero.abs().max():g}: expected -128 to 128")
    layout = LAYOUTS[bits]
    padded = F.pad(codes.to(torch.uint8), (0, -inputs % layout.inputs, 0, -out % ROWS))
    lanes = padded.unflatten(1, (-1, layout.codes, layout.lanes)).unflatten(0, (-1, ROWS))
    lanes = lanes.permute(0, 2, 1, 4, 3).contiguous()  # blocks, chunks, rows, lanes, codes
    packed = pack_bits(lanes, bits=bits)
    if layout.words > 1:
        words = packed.view(torch.int32).transpose(-1, -2).contiguous()
    else:
        words = packed.flatten(-2).view(torch.int32).unflatten(-1, (1, -1)).contiguous()
    scale, zero = (F.pad(t.float(), (0, 0, 0, -out % ROWS)).contiguous() for t in (scale, zero))
    return PackedLinearWeight(words, scale, zero, bits, group, out, inputs)


@torch.no_grad()
def packed_linear(
    x: Tensor, weight: PackedLinearWeight, bias: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """``x W^T + bias``.

    Args:
        x: (..., in), floating point; products are summed in float32.
        weight: what :func:`pack_linear` gives.
        bias: (out,).
        backend: ``auto`` (``triton`` for CUDA tensors, ``cpu`` for others, ``reference`` with a
            warning where that cannot run), ``reference`` (plain torch), ``cpu`` (C++;
            ``cpu:avx512`` or ``cpu:portable`` for one instruction set) or ``triton``.

    Returns:
        (..., out) in x's dtype, without gradient.

    Raises:
        ValueError: another number of inputs, or an unknown backend.
        RuntimeError: the named backend cannot run here.
    """
    if x.shape[-1] != weight.in_features:
        raise ValueError(f"x has {x.shape[-1]} features, the weight {weight.in_features} inputs")
    y = _multiply(x.reshape(-1, x.shape[-1]), weight, backend)[:, : weight.out_features]
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype).reshape(*x.shape[:-1], weight.out_features)


def reference(x: Tensor, weight: PackedLinearWeight) -> Tensor:
    """The definition: (n, in) -> (n, out) float32."""
    return x.float() @ weight.dequantize().T


def _multiply(x: Tensor, weight: PackedLinearWeight, backend: str) -> Tensor:
    name, _, path = backend.partition(":")
    if name == "reference" and not path:
        return reference(x, weight)
    if name == "cpu" or (name == "auto" and not path and x.device.type == "cpu"):
        from papers_shared.kernels import packed_linear_cpu
        from papers_shared.kernels.cpu_extension import ExtensionError

        try:
            return packed_linear_cpu.multiply(x, weight, path=path or None)
        except ExtensionError as error:
            if name == "cpu":
                raise
            return _fall_back(x, weight, str(error))
    if name in ("triton", "auto") and not path:
        if importlib.util.find_spec("triton") is None:
            reason: str | None = "triton is not installed"
        else:
            from papers_shared.kernels import packed_linear_triton

            reason = packed_linear_triton.unavailable(x)
        if reason is None:
            return packed_linear_triton.multiply(x, weight)
        if name == "triton":
            raise RuntimeError(f"backend='triton' cannot run: {reason}")
        return _fall_back(x, weight, reason)
    raise ValueError(
        f"backend={backend!r}: expected auto, reference, cpu, cpu:avx512, cpu:portable or triton"
    )


def _fall_back(x: Tensor, weight: PackedLinearWeight, reason: str) -> Tensor:
    _warn_once(
        f"packed_linear runs its slow reference in plain torch: {reason} "
        "(backend='reference' asks for this without a warning)"
    )
    return reference(x, weight)


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=5)


class PackedLinear(nn.Module):
    """``nn.Linear`` with packed weights, for inference.

    Words, scales, zeros and bias are buffers: they move with the module and are in its state dict.

    Args:
        weight: what :func:`pack_linear` gives.
        bias: (out,) or None.
    """

    words: Tensor
    scale: Tensor
    zero: Tensor
    bias: Tensor | None

    def __init__(self, weight: PackedLinearWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.bits, self.group = weight.bits, weight.group
        self.out_features, self.in_features = weight.out_features, weight.in_features
        self.register_buffer("words", weight.words)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("zero", weight.zero)
        self.register_buffer("bias", None if bias is None else bias.detach())

    @property
    def weight(self) -> PackedLinearWeight:
        """The packed matrix, where the module is."""
        return PackedLinearWeight(
            self.words,
            self.scale.float(),
            self.zero.float(),
            self.bits,
            self.group,
            self.out_features,
            self.in_features,
        )

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, bits={self.bits}, group={self.group}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return packed_linear(x, self.weight, self.bias)
