"""Adaptive frequency modulation: gains for the spatial frequencies of p x p patches.

AdaFM cuts a feature map into non-overlapping p x p patches, takes the real Fourier transform of
each, multiplies it by the sample's ``p * (p // 2 + 1)`` gains (row-major, the same for all channels
and patches) and transforms back:

    y = irfft2(gains * rfft2(x))

Gains are real and the inverse transform drops imaginary parts, so this is a circular convolution
of every patch with one kernel K = irfft2(gains), and K is point-symmetric:

    y[i, j] = sum over u, v of M[(i, j), (u, v)] x[u, v]     M[(i, j), (u, v)] = K[i - u, j - v]

with indices modulo p. M is a symmetric p^2 x p^2 matrix of a sample: one batched matrix product
does what the transforms do, several times faster on a CPU (benchmarks/README.md). The columns of
gains that stand for frequencies 0 and p / 2 of the second axis act through the mean of
``gains[k]`` and ``gains[-k mod p]``.

The rows of M sum to gains[0, 0]: what is constant on each patch is multiplied by it.

Everything is worked out in float32 (float64 for float64 inputs), also under autocast.

Source: DiT-SR (AAAI 2025), "adaptive frequency modulation"; the matrix is worked out here.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from papers_shared.kernels.layout import memory_format


def adafm(x: Tensor, gains: Tensor, *, patch_size: int, backend: str = "auto") -> Tensor:
    """Multiply the spatial frequencies of every patch of ``x`` by ``gains``.

    Args:
        x: (B, C, H, W) floats, contiguous or channels_last for speed (the latter is the fastest);
            H and W multiples of ``patch_size``.
        gains: (B, patch_size * (patch_size // 2 + 1)), a row-major (p, p // 2 + 1) for each sample.
        patch_size: the side p of a patch.
        backend: ``reference`` (the Fourier transforms), ``matrix`` (one matrix product, any
            device), ``triton`` (the product without permuted copies; its backward pass is that of
            ``matrix``) or ``auto``: ``triton`` for CUDA tensors where it can run and no gradient
            is needed, ``matrix`` otherwise.

    Returns:
        (B, C, H, W) in ``x``'s dtype and memory format; differentiable in ``x`` and ``gains``.

    Raises:
        ValueError: shapes, dtypes or a backend that do not fit.
        RuntimeError: ``triton`` was asked for and cannot run here.

    Source: this module's docstring.
    """
    _check(x, gains, patch_size)
    name = _backend(backend, x, [x, gains], patch_size)
    with _no_autocast(x.device):
        return _run(name, x, gains, patch_size)


def group_norm_adafm(
    x: Tensor,
    gains: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    num_groups: int,
    patch_size: int,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """``adafm(group_norm(x), gains)``, not rounded to ``x``'s dtype in between.

    Without gradients ``triton`` normalises as it reads the patches, in one kernel. On a CPU torch's
    group norm stays a step of its own: to normalise while copying the patches takes longer than
    that step and the plain copy together.

    Args:
        x, gains, patch_size, backend: as for :func:`adafm`.
        weight, bias: (C,), the group norm's affine map, or None.
        num_groups: of the group norm; C is a multiple of it.
        eps: of the group norm.

    Returns:
        (B, C, H, W) in ``x``'s dtype and memory format.

    Raises:
        ValueError: shapes, dtypes or a backend that do not fit.
        RuntimeError: ``triton`` was asked for and cannot run here.

    Source: DiT-SR, the first step of attention and of the MLP in a block.
    """
    _check(x, gains, patch_size)
    channels = x.shape[1]
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"num_groups={num_groups}: expected a divisor of the {channels} channels")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.shape != (channels,):
            raise ValueError(f"{name} of shape {tuple(value.shape)}: expected ({channels},)")
    tensors = [t for t in (x, gains, weight, bias) if t is not None]
    name = _backend(backend, x, tensors, patch_size)
    with _no_autocast(x.device):
        if name == "triton" and not _wants_gradients(tensors):
            from papers_shared.kernels import adafm_triton

            affine = adafm_triton.group_norm_affine(x, weight, bias, num_groups, eps)
            return adafm_triton.multiply(x, gains, patch_size, affine)
        kind = _compute_dtype(x)
        weight, bias = (None if t is None else t.to(kind) for t in (weight, bias))
        normal = F.group_norm(x.to(kind), num_groups, weight, bias, eps)
        y = _run(name, normal, gains, patch_size)
        return y.to(x.dtype).contiguous(memory_format=memory_format(x))


def adafm_matrix(gains: Tensor, patch_size: int) -> Tensor:
    """The matrix that :func:`adafm` multiplies a flattened patch by.

    Args:
        gains: (B, p * (p // 2 + 1)) floats.
        patch_size: the side p of a patch.

    Returns:
        (B, p * p, p * p), symmetric; float32, or float64 for float64 gains. Differentiable.

    Raises:
        ValueError: the number of gains is not that of the patch size.
    """
    _check_gains(gains, patch_size)
    kind = _compute_dtype(gains)
    with _no_autocast(gains.device):
        basis, offsets = _circular(patch_size, kind, gains.device)
        kernel = gains.to(kind) @ basis
        return kernel.index_select(1, offsets).unflatten(1, (patch_size**2, patch_size**2))


def _reference(x: Tensor, gains: Tensor, p: int) -> Tensor:
    """The definition."""
    kind = _compute_dtype(x)
    batch, channels, height, width = x.shape
    patches = x.to(kind).reshape(batch, channels, height // p, p, width // p, p).transpose(3, 4)
    gains = gains.to(kind).reshape(batch, 1, 1, 1, p, p // 2 + 1)
    y = torch.fft.irfft2(gains * torch.fft.rfft2(patches), s=(p, p))
    y = y.transpose(3, 4).reshape(x.shape).to(x.dtype)
    return y.contiguous(memory_format=memory_format(x))


def matrix_form(x: Tensor, gains: Tensor, patch_size: int) -> Tensor:
    """One product a sample, in the layout that needs the cheapest copies; see :func:`adafm`."""
    batch, channels, height, width = x.shape
    p, rows, columns = patch_size, height // patch_size, width // patch_size
    kind = _compute_dtype(x)
    matrix = adafm_matrix(gains.to(kind), p)
    if memory_format(x) is torch.channels_last and columns == 1:  # patches lie one after another
        stacked = x.permute(0, 2, 3, 1).to(kind).reshape(batch, rows, p * p, channels)
        y = (matrix[:, None] @ stacked).to(x.dtype)
        return y.view(batch, height, width, channels).permute(0, 3, 1, 2)
    if memory_format(x) is torch.channels_last:  # (p^2, p^2) @ (p^2, patches and C)
        patches = x.permute(0, 2, 3, 1).reshape(batch, rows, p, columns, p, channels)
        packed = _copy(patches.permute(0, 2, 4, 1, 3, 5), kind)
        y = (matrix @ packed.flatten(1, 2).flatten(2)).view(packed.shape).permute(0, 3, 1, 4, 2, 5)
        return _copy(y, x.dtype).view(batch, height, width, channels).permute(0, 3, 1, 2)
    # (C and patches, p^2) @ (p^2, p^2), which is symmetric
    packed = _copy(x.reshape(batch, channels, rows, p, columns, p).transpose(3, 4), kind)
    y = (packed.flatten(4).flatten(1, 3) @ matrix).view(packed.shape).transpose(3, 4)
    return _copy(y, x.dtype).view(x.shape)


def _copy(x: Tensor, kind: torch.dtype) -> Tensor:
    """Contiguous and of this dtype, in one pass."""
    return x.to(kind, memory_format=torch.contiguous_format).contiguous()


@functools.lru_cache(maxsize=32)
def _circular(p: int, kind: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """What turns gains into the kernel, (p * (p // 2 + 1), p^2), and the kernel into the matrix.

    The latter is (p^4,): element [i, j, u, v] of the matrix is the kernel's [i - u, j - v].
    """
    with torch.inference_mode(False):  # autograd must be able to keep them
        axis = torch.arange(p, device="cpu")
        half = axis[: p // 2 + 1]
        turns = axis[:, None, None, None] * axis[:, None] + half[:, None, None] * axis
        twice = torch.where((half == 0) | (2 * half == p), 1.0, 2.0)[:, None, None]
        basis = twice * torch.cos(2 * math.pi / p * (turns % p).double()) / p**2
        difference = (axis[:, None] - axis) % p
        offsets = p * difference[:, None, :, None] + difference[:, None, :]
        return basis.view(-1, p * p).to(device, kind), offsets.flatten().to(device)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    if device.type == "meta":  # has no autocast
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _backend(backend: str, x: Tensor, tensors: Sequence[Tensor], p: int) -> str:
    """The backend that runs: reference, matrix or triton."""
    if backend in ("reference", "matrix"):
        return backend
    if backend == "auto" and (x.device.type != "cuda" or _wants_gradients(tensors)):
        return "matrix"
    if backend not in ("auto", "triton"):
        raise ValueError(f"backend={backend!r}: expected auto, reference, matrix or triton")
    if importlib.util.find_spec("triton") is None:
        reason: str | None = "triton is not installed"
    else:
        from papers_shared.kernels import adafm_triton

        reason = adafm_triton.unavailable(x, p)
    if reason is not None and backend == "triton":
        raise RuntimeError(f"backend='triton' cannot run: {reason}")
    return "matrix" if reason is not None else "triton"


def _run(name: str, x: Tensor, gains: Tensor, p: int) -> Tensor:
    if name == "triton":
        from papers_shared.kernels import adafm_triton

        y: Tensor = adafm_triton.TritonAdaFM.apply(x, gains, p)
        return y
    return (matrix_form if name == "matrix" else _reference)(x, gains, p)


def _wants_gradients(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _check_gains(gains: Tensor, p: int) -> None:
    if p < 1:
        raise ValueError(f"patch_size={p}: expected an integer from 1 up")
    count = p * (p // 2 + 1)
    if gains.dim() != 2 or gains.shape[1] != count or not gains.is_floating_point():
        raise ValueError(
            f"gains of shape {tuple(gains.shape)} and {gains.dtype}: expected floats of shape "
            f"(batch, {count}), that is p * (p // 2 + 1) for patch_size={p}"
        )


def _check(x: Tensor, gains: Tensor, p: int) -> None:
    _check_gains(gains, p)
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(
            f"input of shape {tuple(x.shape)} and {x.dtype}: "
            "expected floats of shape (batch, channels, height, width)"
        )
    if x.shape[2] % p or x.shape[3] % p:
        raise ValueError(
            f"input of {x.shape[2]}x{x.shape[3]}: height and width must be multiples of "
            f"patch_size={p}; pad the input"
        )
    if len(gains) != len(x):
        raise ValueError(f"{len(gains)} rows of gains for a batch of {len(x)}")
