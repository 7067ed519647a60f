"""Fixtures of DUKD's tests: tiny networks, patches of random pictures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dukd.networks import EDSR
from papers_shared.images import write_image


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def edsr(scale: int = 2, channels: int = 8, blocks: int = 3) -> EDSR:
    return EDSR(3, 3, num_feat=channels, num_block=blocks, upscale=scale)


@pytest.fixture
def make_edsr() -> Callable[..., nn.Module]:
    return edsr


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module]:
    """A teacher and a student of scale 2."""
    return edsr(channels=12), edsr(channels=8)


@pytest.fixture
def patches() -> tuple[Tensor, Tensor]:
    """lr (3, 3, 12, 12) and hr (3, 3, 24, 24)."""
    return torch.rand(3, 3, 12, 12), torch.rand(3, 3, 24, 24)


@pytest.fixture
def photos(tmp_path) -> str:
    """A folder of three photos of 40 x 44 pixels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        write_image(torch.rand(3, 40, 44), folder / f"{i}.png")
    return str(folder)
