"""Fixtures of LIPT's tests: small networks whose every weight counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lipt.model import LIPT, Config, build
from papers_shared.name_seeded import name_seeded_state_dict

SMALL = {"m_elan": 4, "c_elan": 8, "n_share": 1, "window_sizes": (8, 8)}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def config() -> Config:
    return Config.of(SMALL)


def network(**changes: Any) -> LIPT:
    """In eval mode, batch norm statistics and Sobel scales far from where they start."""
    model = build(SMALL | changes)
    state = model.state_dict()
    kept = [n for n in state if n.endswith(".mask") or n.startswith(("sub_mean.", "add_mean."))]
    seeded = name_seeded_state_dict(state, keep=kept)
    # Attention has no scaling: large features would leave one key in every softmax.
    damped = ("bn.weight", "bn2.weight", "avgbn.weight", ".scale", "conv1.weight")
    model.load_state_dict({n: 0.2 * v if n.endswith(damped) else v for n, v in seeded.items()})
    model.head[0].weight.data /= model.config.rgb_range
    return model.eval()


@pytest.fixture
def make_network() -> Any:
    return network
