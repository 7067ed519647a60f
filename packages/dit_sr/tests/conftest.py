"""Fixtures of DiT-SR's tests: a small network with random weights, its autoencoder, photos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dit_sr.family import FAMILY
from dit_sr.model import Config, DiTSR
from dit_sr.pipeline import DiTSRModel
from papers_shared.checkpoints import save_state_dict
from papers_shared.diffusion.families import weights_metadata
from papers_shared.diffusion.scheduler import ResShiftScheduler
from papers_shared.diffusion.train_autoencoder import build as build_autoencoder
from papers_shared.images import write_image
from papers_shared.name_seeded import name_seeded_state_dict

TINY = Config(
    image_size=16,
    model_channels=16,
    channel_mult=(1, 2),
    attention_resolutions=(16, 8),
    num_head_channels=8,
    swin_depth=2,
    swin_embed_dim=16,
    window_size=4,
    fft_patch_size=4,
    mlp_ratio=1,
    dropout=0.0,
    lq_size=16,
    norm_groups=4,
)


# For what runs a network many times: four blocks in all.
LIGHT = replace(TINY, attention_resolutions=(8,), swin_depth=1)


@pytest.fixture(autouse=True)
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    torch.manual_seed(0)


@pytest.fixture
def tiny() -> Config:
    return TINY


def random_network(config: Config = TINY) -> DiTSR:
    """No weight is zero or nearly so, as AdaFM's gains are in a new network."""
    model: Any = DiTSRModel(**config.to_dict())
    kept = [name for name in model.state_dict() if name.endswith("attn_mask")]
    model.load_state_dict(name_seeded_state_dict(model.state_dict(), keep=kept))
    return model.eval()


@pytest.fixture
def network() -> DiTSR:
    return random_network()


@pytest.fixture
def autoencoder_file(tmp_path: Path) -> str:
    path = tmp_path / "autoencoder.safetensors"
    model = build_autoencoder(width=8, latent_channels=3)
    last: Any = model.decoder.layers[-1]  # grey on average, with contrast, which a new one lacks
    last.weight.data.mul_(3)
    last.bias.data.fill_(0.5)
    metadata = {"width": "8", "latent_channels": "3", "scaling_factor": "1.0"}
    save_state_dict(model.state_dict(), path, metadata=metadata)
    return str(path)


@pytest.fixture
def weights(tmp_path: Path, autoencoder_file: str) -> str:
    """The small network in a file as training writes it: four steps."""
    path = tmp_path / "network.safetensors"
    scheduler = ResShiftScheduler(num_train_timesteps=4)
    metadata = weights_metadata(FAMILY, LIGHT, scheduler, autoencoder_file)
    save_state_dict(random_network(LIGHT).state_dict(), path, metadata=metadata)
    return str(path)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    write_image(torch.rand(3, 9, 21), path)
    return str(path)
