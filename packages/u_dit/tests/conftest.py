"""Fixtures of U-DiT's tests, and the network that they build."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

TINY = {
    "input_size": 8,
    "in_channels": 3,
    "hidden_size": 8,
    "num_heads": 2,
    "depth": [1, 1, 1, 1, 1],
    "mlp_ratio": 2,
    "num_classes": 3,
    "attn_type": "v2",
    "posemb_type": "rope2d",
    "down_shortcut": True,
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of four pictures of 8x12, each class of one colour and noise."""
    generator = np.random.default_rng(0)
    for label, colour in enumerate(("red", "green", "blue")):
        (tmp_path / "photos" / colour).mkdir(parents=True)
        for i in range(4):
            picture = generator.integers(0, 80, (8, 12, 3), dtype=np.uint8)
            picture[..., label] += 150
            Image.fromarray(picture).save(tmp_path / "photos" / colour / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps the first precision it was asked for in the process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
