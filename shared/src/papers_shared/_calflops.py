"""The operations that the package ``calflops`` counts, seen at the functions of torch.

Counted are calls, not modules: ``F.silu(x)`` counts like ``nn.SiLU()(x)``, and the softmax inside
``scaled_dot_product_attention`` like one of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
_TRANSPOSED = {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
_ELEMENTWISE = {"silu", "silu_", "gelu", "gelu_", "softmax"}


class CalflopsCounter(TorchFunctionMode):
    """While entered, hands the count of every call of torch to ``record(kind, operations)``."""

    def __init__(self, record: Callable[[str, int], None]) -> None:
        super().__init__()
        self.record = record

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "multi_head_attention_forward":
            # Its linear layers are called where no mode looks any more.
            raise ValueError(
                "rule 'calflops' cannot see into nn.MultiheadAttention; write the attention with "
                "F.linear and F.scaled_dot_product_attention, or count with rule='flop_counter'"
            )
        made = func(*args, **kwargs)
        for kind, number in _operations(name, args, kwargs, made):
            self.record(kind, number)
        return made


def _operations(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], made: Any
) -> list[tuple[str, int]]:
    def given(position: int, keyword: str) -> Any:
        return args[position] if position < len(args) else kwargs.get(keyword)

    if name in _CONVOLUTIONS or name in _TRANSPOSED:
        # Each output element (of a transposed convolution: input element) meets one filter.
        elements = given(0, "input") if name in _TRANSPOSED else made
        macs = elements.numel() * math.prod(given(1, "weight").shape[1:])
        bias = [("bias", made.numel())] if given(2, "bias") is not None else []
        return [("convolution", 2 * macs), *bias]
    if name == "linear":
        return [("linear", 2 * made.numel() * given(1, "weight").shape[-1])]
    if name == "group_norm":
        return [("group_norm", 5 * made.numel())]
    if name in _ELEMENTWISE:
        return [(name.removesuffix("_"), made.numel())]
    if name == "scaled_dot_product_attention":
        # (B, heads, N, d) and (B, heads, M, d): one weight for each pair of tokens.
        return [("softmax", math.prod(made.shape[:-1]) * given(1, "key").shape[-2])]
    if name == "interpolate":
        image, mode = given(0, "input"), given(3, "mode") or "nearest"
        if isinstance(image, Tensor) and mode in ("nearest", "nearest-exact"):
            return [("upsample", image.numel())]
    return []
