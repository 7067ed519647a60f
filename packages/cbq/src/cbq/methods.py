"""The methods by name, each ``method(model, segments, bits=..., ...) -> Quantized``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from cbq.pipeline import Quantized, quantize
from cbq.settings import PRESETS, preset


def run_preset(model: Any, segments: Sequence[Tensor], *, name: str, **changes: Any) -> Quantized:
    """Quantize by a preset; ``changes`` are fields of Settings."""
    return quantize(model, segments, preset(name, **changes))


METHODS: dict[str, Callable[..., Quantized]] = {
    name: partial(run_preset, name=name) for name in PRESETS
}
