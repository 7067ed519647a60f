"""Unsigned n-bit codes <-> bytes, without gaps.

Code ``i`` of a row takes the bits ``i * bits .. (i + 1) * bits - 1``; bit ``j`` of a row is bit
``j % 8`` of byte ``j // 8`` (least significant first). A row of ``n`` codes takes
``ceil(n * bits / 8)`` bytes; the unused bits of its last byte are 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pack_bits(codes: Tensor, *, bits: int = 1) -> Tensor:
    """Pack the last dimension of unsigned codes into bytes.

    Args:
        codes: (..., n) boolean or integer, values in 0 .. 2**bits - 1.
        bits: bits a code, 1 to 8.

    Returns:
        (..., ceil(n * bits / 8)) uint8.

    Raises:
        ValueError: ``bits`` or a code out of range.
    """
    _check_bits(bits)
    if codes.is_floating_point() or codes.is_complex():
        raise ValueError(f"codes are {codes.dtype}: expected booleans or integers")
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >> bits):
        raise ValueError(
            f"codes from {int(codes.min())} to {int(codes.max())}: "
            f"expected 0 to {(1 << bits) - 1} for {bits} bits"
        )
    stream = (codes.to(torch.int16)[..., None] >> _positions(bits, codes)) & 1
    stream = stream.flatten(-2)
    stream = torch.nn.functional.pad(stream, (0, -stream.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (stream << _positions(8, codes)).sum(-1).to(torch.uint8)


def unpack_bits(packed: Tensor, *, count: int, bits: int = 1) -> Tensor:
    """The inverse of :func:`pack_bits`.

    Args:
        packed: (..., bytes) uint8.
        count: codes in a row (the bytes alone do not tell).
        bits: bits a code, 1 to 8.

    Returns:
        (..., count) uint8 codes.

    Raises:
        ValueError: not uint8, or ``count`` codes do not fill exactly these bytes.
    """
    _check_bits(bits)
    if packed.dtype != torch.uint8:
        raise ValueError(f"packed codes are {packed.dtype}: expected torch.uint8")
    expected = (count * bits + 7) // 8
    if packed.shape[-1] != expected:
        raise ValueError(
            f"{packed.shape[-1]} bytes a row: {count} codes of {bits} bits take {expected}"
        )
    stream = (packed.to(torch.int16)[..., None] >> _positions(8, packed)) & 1
    codes = stream.flatten(-2)[..., : count * bits].unflatten(-1, (count, bits))
    return (codes << _positions(bits, packed)).sum(-1).to(torch.uint8)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"bits={bits}: expected 1 to 8")


def _positions(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=torch.int16, device=like.device)
