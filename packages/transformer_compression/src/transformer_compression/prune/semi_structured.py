"""N:M in storage, and whether a device gains anything from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from transformer_compression.prune.weights import Pattern, check_pattern

TWO_OF_FOUR = Pattern(0.5, 2, 4)


@dataclass(frozen=True)
class Support:
    """Whether a device multiplies 2:4 matrices faster, and why (not)."""

    supported: bool
    reason: str


def device_support(device: str | torch.device = "cpu") -> Support:
    """Try a 2:4 product on the device: torch's own answer, not a list of devices.

    Source: sheet 4.4 (CUDA from compute capability 8.0 on; fp16, bf16, int8).
    """
    device = torch.device(device)
    try:
        with torch.no_grad():
            dense = torch.zeros(128, 128, dtype=torch.float16, device=device)
            dense[:, ::2] = 1
            sparse = torch.sparse.to_sparse_semi_structured(dense)
            torch.mm(sparse, dense)
    except (RuntimeError, NotImplementedError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        return Support(
            False,
            f"2:4 stays dense on {device.type} and saves no time there: torch says {reason!r}",
        )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Support(True, f"2:4 products run on {name}'s sparse tensor cores")


def to_semi_structured(model: nn.Module) -> list[str]:
    """Turn every half-precision 2:4 linear layer into torch's semi-structured tensor, in place.

    Returns:
        the names of the layers that were turned.

    Raises:
        ValueError: the model's device cannot, or no layer is 2:4.
    """
    weights = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    device = next(model.parameters()).device
    support = device_support(device)
    if not support.supported:
        raise ValueError(support.reason)
    turned = []
    for name, linear in weights.items():
        rows, inputs = linear.weight.shape
        fits = rows % 32 == 0 and inputs % 64 == 0 and linear.weight.dtype != torch.float32
        if fits and check_pattern(linear.weight, TWO_OF_FOUR):
            sparse = torch.sparse.to_sparse_semi_structured(linear.weight.detach())
            linear.weight = nn.Parameter(sparse, requires_grad=False)
            turned.append(name)
    if not turned:
        raise ValueError(
            "no linear layer is 2:4 in half precision with rows a multiple of 32 and inputs of 64; "
            "prune with pattern 2:4 and call model.half() first"
        )
    return turned


def pack_2_4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A 2:4 matrix as its kept values and their places.

    Args:
        weight: (rows, inputs), inputs a multiple of 8, at most two non-zeros in each four.

    Returns:
        values (rows, inputs / 2) in the matrix's dtype, and uint8 (rows, inputs / 8): two bits a
        value, the first value lowest.

    Raises:
        ValueError: the matrix is not 2:4.
    """
    if weight.shape[1] % 8 or not check_pattern(weight, TWO_OF_FOUR):
        raise ValueError(
            "the matrix is not 2:4 (two zeros in each four inputs, inputs a multiple of 8)"
        )
    grouped = weight.unflatten(1, (-1, 4))
    # Stable: the non-zeros first, in order of place; zeros fill up groups with fewer of them.
    order = (grouped == 0).to(torch.uint8).argsort(dim=-1, stable=True)[..., :2].sort(-1).values
    values = grouped.gather(-1, order).flatten(1)
    places = order.flatten(1).unflatten(1, (-1, 4)).to(torch.int32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.int32, device=weight.device)
    return values, (places << shifts).sum(-1).to(torch.uint8)


def unpack_2_4(values: Tensor, places: Tensor) -> Tensor:
    """The opposite of ``pack_2_4``: (rows, inputs)."""
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.int32, device=places.device)
    index = ((places.to(torch.int32)[..., None] >> shifts) & 3).flatten(1).long()
    grouped = torch.zeros(*values.shape[:1], values.shape[1] // 2, 4, dtype=values.dtype)
    grouped = grouped.to(values.device)
    grouped.scatter_(-1, index.unflatten(1, (-1, 2)), values.unflatten(1, (-1, 2)))
    return grouped.flatten(1)


def sparse_bytes(weight: Tensor, pattern: Pattern, *, bits: int = 16) -> float:
    """Bytes of a pruned matrix by the report's rule.

    Unstructured: a mask bit for every weight and ``bits`` for every one kept (no less than dense
    is reported as it is). N:M: M - N values of ``bits`` and their places for every M weights.

    Source: sheet section 3 and 4.4 (2:4 at 16 bits: 9/16 of dense; at 8 bits: 5/8).
    """
    if pattern.m:
        kept = pattern.m - pattern.n
        place = math.ceil(math.log2(pattern.m))
        return weight.numel() / pattern.m * kept * (bits + place) / 8
    kept = int((weight != 0).sum())
    return (weight.numel() + bits * kept) / 8
