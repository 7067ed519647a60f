"""Codes in 32-bit words: one dense little-endian bit stream along a dimension.

Element i takes the bits ``i * bits .. (i + 1) * bits - 1`` of the stream, so 2, 4 and 8 bits fill
words evenly and 32 three-bit codes fill three words. GPTQ files and compressed-tensors use it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from papers_shared.packing import pack_bits, unpack_bits


def pack_words(codes: Tensor, *, bits: int, dim: int = -1) -> Tensor:
    """Pack a dimension of unsigned codes into int32 words.

    Args:
        codes: whole numbers 0 .. 2^bits - 1, any shape.
        bits: bits a code, 1 to 8.
        dim: the dimension that is packed.

    Returns:
        int32, ``ceil(n * bits / 32)`` long in that dimension.
    """
    last = codes.to(torch.uint8).movedim(dim, -1).contiguous()
    packed = pack_bits(last, bits=bits)
    packed = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % 4)).contiguous()
    return packed.view(torch.int32).movedim(-1, dim).contiguous()


def unpack_words(words: Tensor, *, bits: int, count: int, dim: int = -1) -> Tensor:
    """The inverse of ``pack_words``; uint8 codes, ``count`` long in that dimension.

    Raises:
        ValueError: not int32, or the words do not hold ``count`` codes.
    """
    if words.dtype != torch.int32:
        raise ValueError(f"packed words are {words.dtype}: expected torch.int32")
    last = words.movedim(dim, -1).contiguous()
    expected = -(-count * bits // 32)
    if last.shape[-1] != expected:
        raise ValueError(f"{last.shape[-1]} words: {count} codes of {bits} bits take {expected}")
    packed = last.view(torch.uint8)[..., : -(-count * bits // 8)]
    return unpack_bits(packed.contiguous(), count=count, bits=bits).movedim(-1, dim).contiguous()
