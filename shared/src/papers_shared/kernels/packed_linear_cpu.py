"""The CPU backend of :mod:`papers_shared.kernels.packed_linear`: C++ compiled on first use.

One library holds AVX-512 and portable code. A code is looked up in a register of values (the code
less its zero point) by one permutation, which needs no mask: 16 weights cost a shift, a permutation
and a multiply-add, with bfloat16 inputs 32. Threads are torch's; blocks of rows go to several.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from papers_shared.kernels.cpu_extension import ExtensionError, load_extension
from papers_shared.kernels.packed_linear import MANY, UNIT, PackedLinearWeight

_FLAGS = ["-O3"]
_LARGE = 256  # inputs a scale from which on bfloat16's dot products are faster


@functools.cache
def extension() -> ModuleType:
    """The compiled extension, built into the cache where it is not there yet.

    Raises:
        ExtensionError: no compiler or no ninja, or the build failed.
    """
    return load_extension("papers_packed_linear", "packed_linear.cpp", flags=_FLAGS)


def paths() -> list[str]:
    """The instruction sets that this CPU runs, the fastest first.

    Raises:
        ExtensionError: the extension cannot be built.
    """
    return extension().paths()


def multiply(x: Tensor, weight: PackedLinearWeight, *, path: str | None = None) -> Tensor:
    """(n, in) of any float type -> (n, out) float32, or more columns than that.

    A single bfloat16 input meets codes of 2 and 4 bits in AVX512_BF16's dot products, where the
    CPU has them, groups are large and no path is named.

    Raises:
        ExtensionError: no compiler, a failed build, or a path that this CPU lacks.
        ValueError: tensors that are not on the CPU.
    """
    if x.device.type != "cpu" or weight.words.device.type != "cpu":
        raise ValueError(f"backend='cpu' takes CPU tensors, these are on {x.device}")
    module, available = extension(), paths()
    if path is not None and path not in available:
        raise ExtensionError(f"path {path!r}: this CPU has {', '.join(available)}")
    if len(x) >= MANY:
        return F.linear(x.float(), dequantize(weight, path=path))
    matrix = (weight.words, weight.scale, weight.zero, weight.bits, weight.group)
    halves = x.dtype == torch.bfloat16 and len(x) == 1 and weight.bits != 3
    halves = halves and weight.group >= _LARGE  # small groups: the sums of each cost more
    padded = F.pad(x, (0, weight.inputs - weight.in_features))
    if halves and path is None and module.has_bf16():
        sums = x.float().unflatten(1, (-1, weight.group)).sum(-1)
        return module.multiply_bf16(padded.contiguous(), sums, *matrix)
    return module.multiply(_sorted(padded.float(), weight.bits), *matrix, path or available[0])


def dequantize(weight: PackedLinearWeight, *, path: str | None = None) -> Tensor:
    """float32 (out, in), many times faster than ``weight.dequantize()``."""
    out = extension().dequantize(
        weight.words,
        weight.scale,
        weight.zero,
        weight.bits,
        weight.group,
        weight.inputs,
        path or paths()[0],
    )
    if weight.bits != 3:
        out = out.unflatten(1, (-1, 2, UNIT // 2)).transpose(2, 3).flatten(1)
    return out[: weight.out_features, : weight.in_features]


def _sorted(x: Tensor, bits: int) -> Tensor:
    """Of each 32 inputs the even ones first, as their codes are met."""
    if bits == 3:
        return x.contiguous()
    return x.unflatten(1, (-1, UNIT // 2, 2)).transpose(2, 3).flatten(1).contiguous()
