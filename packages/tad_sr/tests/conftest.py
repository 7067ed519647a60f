"""Fixtures of TAD-SR's tests: a small network with random weights, a diffusion, a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from papers_shared.diffusion.swin_unet import UNetModelSwin
from papers_shared.name_seeded import name_seeded_state_dict
from tad_sr.losses import Draws, LossConfig, draw
from tad_sr.model import Config, build

TINY = Config(
    image_size=8,
    in_channels=4,
    out_channels=4,
    model_channels=16,
    channel_mult=(1, 2),
    num_res_blocks=(1, 1),
    attention_resolutions=(8,),
    num_head_channels=8,
    swin_embed_dim=16,
    window_size=4,
    mlp_ratio=1,
    lq_size=8,
    norm_groups=4,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny() -> Config:
    return TINY


def random_network(config: Config, prefix: str = "") -> UNetModelSwin:
    """No weight is zero, as some are in a new network."""
    model = build(config)
    state = {prefix + name: value for name, value in model.state_dict().items()}
    kept = [name for name in state if name.endswith("attn_mask")]
    seeded = name_seeded_state_dict(state, keep=kept)
    model.load_state_dict({name.removeprefix(prefix): value for name, value in seeded.items()})
    return model


@pytest.fixture
def teacher() -> UNetModelSwin:
    model = random_network(TINY)
    model.requires_grad_(False)
    return model


@pytest.fixture
def student() -> UNetModelSwin:
    return random_network(TINY, prefix="student.")


@pytest.fixture
def scheduler() -> Any:
    from papers_shared.diffusion.scheduler import CAP, ResShiftScheduler

    return ResShiftScheduler(sqrt_eta_start_cap=CAP, timestep_spacing="trailing")


@dataclass
class Batch:
    """Latents and pictures of a training step, and its draws."""

    z_y: Tensor
    z_gt: Tensor
    lq: Tensor
    draws: Draws


@pytest.fixture
def batch() -> Batch:
    z_y, z_gt = torch.randn(2, 2, 4, 8, 8)
    lq = torch.rand(2, 3, 8, 8) * 2 - 1
    return Batch(z_y, z_gt, lq, draw(LossConfig(), z_y, total=15))
