"""A small ResShift-like network, its autoencoder and their family, for the tests of diffusion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401  from_pretrained looks it up beside UNetModelSwinModel

from papers_shared.checkpoints import save_state_dict
from papers_shared.diffusion.families import Family, weights_metadata
from papers_shared.diffusion.official import Layout
from papers_shared.diffusion.pipeline import ResShiftPipeline, as_diffusers_model
from papers_shared.diffusion.scheduler import ResShiftScheduler
from papers_shared.diffusion.swin_unet import SwinUNetConfig, UNetModelSwin
from papers_shared.diffusion.train_autoencoder import build as build_autoencoder
from papers_shared.name_seeded import name_seeded_state_dict

CONFIG = SwinUNetConfig(
    image_size=8,
    model_channels=16,
    channel_mult=(1, 2),
    num_res_blocks=(1, 1),
    attention_resolutions=(8,),
    num_head_channels=8,
    swin_depth=2,
    swin_embed_dim=16,
    window_size=4,
    mlp_ratio=1,
    lq_size=8,
    norm_groups=4,
)
UNetModelSwinModel: Any = as_diffusers_model(UNetModelSwin, SwinUNetConfig, module=__name__)


class ToyPipeline(ResShiftPipeline):
    """The pipeline of the toy network."""


VARIANTS = {"toy": CONFIG, "wide": SwinUNetConfig.of({**CONFIG.to_dict(), "swin_embed_dim": 32})}
FAMILY = Family(
    package="papers_shared",
    pipeline=ToyPipeline,
    model=UNetModelSwinModel,
    variants=VARIANTS,
    schedulers={"toy": {}, "wide": {}},
    layout=Layout(UNetModelSwin, VARIANTS, foreign={"adaLN_scale": "that of DiT-SR"}),
    released="the toy's weights are nowhere",
)


def network(config: SwinUNetConfig = CONFIG) -> Any:
    """No weight is zero, as some are in a new network."""
    model = UNetModelSwinModel(**config.to_dict())
    state = model.state_dict()
    keep = [name for name in state if name.endswith("attn_mask")]
    model.load_state_dict(name_seeded_state_dict(state, keep=keep))
    return model.eval()


def autoencoder(channels: int = 3) -> Any:
    """Its pictures are grey on average and have contrast, which those of a new one lack."""
    with torch.random.fork_rng():
        torch.manual_seed(channels)
        model = build_autoencoder(width=8, latent_channels=channels, scaling_factor=0.5).eval()
    last = model.decoder.layers[-1]
    last.weight.data.mul_(3)
    last.bias.data.fill_(0.5)
    return model


def pipeline(**scheduler: Any) -> ToyPipeline:
    options = {"num_train_timesteps": 4, **scheduler}
    return ToyPipeline(unet=network(), vae=autoencoder(), scheduler=ResShiftScheduler(**options))


def write_autoencoder(path: Path, channels: int = 3) -> str:
    metadata = {"width": "8", "latent_channels": str(channels), "scaling_factor": "0.5"}
    save_state_dict(autoencoder(channels).state_dict(), path, metadata=metadata)
    return str(path)


def write_network(path: Path, *, autoencoder: str, **scheduler: Any) -> str:
    """A file as training writes it."""
    schedule = ResShiftScheduler(**{"num_train_timesteps": 4, **scheduler})
    metadata = weights_metadata(FAMILY, CONFIG, schedule, autoencoder)
    save_state_dict(network().state_dict(), path, metadata=metadata)
    return str(path)
