"""Fixtures of CBQ's tests: a tiny Llama, and one run over it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cbq.pipeline import Quantized, quantize
from cbq.settings import preset
from papers_shared.language_models import tiny_llama

FAST: dict[str, Any] = {"bits": 4, "steps": 3, "precision": "float32", "held_out": 0.0}


def tokens(count: int = 4, length: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(3, 97, (count, length), generator=generator))


def run(**changes: Any) -> Quantized:
    """Quantize a tiny Llama; the keywords are fields of Settings, and those of quantize."""
    of_quantize = ("work", "offload", "budget", "grids", "progress")
    others = {n: changes.pop(n) for n in of_quantize if n in changes}
    model = changes.pop("model", None) or tiny_llama()
    name = changes.pop("preset", "best")
    base = FAST if name in ("best", "lora") else {"bits": 4, "precision": "float32"}
    settings = preset(name, **{**base, **changes})
    return quantize(model, tokens(), settings, **others)


@pytest.fixture
def segments() -> list[Tensor]:
    return tokens()


@pytest.fixture
def quantize_tiny() -> Any:
    return run


@pytest.fixture(scope="session")
def quantized() -> Quantized:
    return run()
