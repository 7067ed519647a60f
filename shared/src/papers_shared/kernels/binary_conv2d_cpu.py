"""The CPU backend of :mod:`papers_shared.kernels.binary_conv2d`: C++ compiled on first use.

``csrc/`` is compiled once by ``torch.utils.cpp_extension`` (which needs a C++ compiler and ninja)
into the user's cache, under a name that holds the sources, torch and Python. One library holds
all paths of an architecture and picks by the CPU it runs on: AVX-512 with VPOPCNTDQ, AVX2 and
portable C++; on ARM NEON (cross-compiled and run under qemu by the tests, never on ARM hardware).

Threads are torch's (``torch.set_num_threads``): images of a batch go to different threads, or
the parts of one image where there are fewer images than threads. Only GCC's build has threads:
its OpenMP calls find torch's own runtime in the process, clang's would bring in another.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from papers_shared.kernels.cpu_extension import ExtensionError, load_extension
from papers_shared.kernels.layout import memory_format

__all__ = ["CpuConvolution", "ExtensionError", "extension", "paths"]

if TYPE_CHECKING:
    from papers_shared.kernels.binary_conv2d import Operands

_BLOCK = 16  # output channels that the kernel computes together: kBlock in csrc
_FLAGS = ["-O3", "-ffp-contract=off"]  # no fused multiply-adds: paths and reference round alike


def paths() -> list[str]:
    """The instruction sets that this CPU runs, the fastest first.

    Raises:
        ExtensionError: the extension cannot be built.
    """
    return extension().paths()


class CpuConvolution:
    """The operands in the layout of the C++ kernel; called with (x, residual or None).

    Args:
        operands: the constants of the convolution.
        path: one of :func:`paths`; None for the fastest.

    Raises:
        ExtensionError: no compiler, a failed build, or a path that this CPU lacks.
        ValueError: the operands are not on the CPU.
    """

    def __init__(self, operands: Operands, *, path: str | None = None) -> None:
        if operands.a.device.type != "cpu":
            raise ValueError(f"backend='cpu' takes CPU tensors, these are on {operands.a.device}")
        module, available = extension(), paths()
        if path is not None and path not in available:
            raise ExtensionError(f"path {path!r}: this CPU has {', '.join(available)}")
        o, weight = operands, operands.weight
        words = weight.words().flatten(1)  # (O, taps * words)
        channels = weight.out_channels
        spare = -channels % _BLOCK
        blocks = F.pad(words, (0, 0, 0, spare)).unflatten(0, (-1, _BLOCK))
        total = weight.bit_tensor().sum((1, 2)).to(torch.int32)
        self._operands = operands
        self._kernel = functools.partial(
            module.binary_conv2d,
            threshold=o.threshold,
            flipped=o.flipped,
            weight=blocks.transpose(1, 2).contiguous(),  # (O / 16, taps * words, 16)
            a=F.pad(o.a, (0, spare)),
            b=F.pad(o.b, (0, spare)),
            e=F.pad(o.e, (0, spare)),
            base=F.pad(o.base, (0, spare)),
            valid=o.valid,
            total=F.pad(total, (0, spare)),
            row_class=o.row_class,
            column_class=o.column_class,
            column_classes=o.column_classes,
            out_channels=channels,
            geometry=[*weight.kernel_size, *o.stride, *o.padding, *o.dilation],
            positive_slope=None if o.slopes is None else o.slopes[0],
            negative_slope=None if o.slopes is None else o.slopes[1],
            path=path or available[0],
        )

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        self._operands.check(x, residual)
        layout = memory_format(x)
        if residual is not None:
            residual = residual.detach().contiguous(memory_format=layout)
        return self._kernel(
            x.detach().contiguous(memory_format=layout),
            residual=residual,
            channels_last=layout == torch.channels_last,
        )


@functools.cache
def extension() -> ModuleType:
    """The compiled extension, built into the cache where it is not there yet.

    Raises:
        ExtensionError: no compiler or no ninja, or the build failed.
    """
    return load_extension("papers_binary_conv2d", "binary_conv2d.cpp", flags=_FLAGS)
