"""The generator: student and teacher are ResShift's denoiser, whose parts stand in papers_shared.

TAD-SR adds no parameter to it. What it adds is a way to read the encoder's features,
``UNetModelSwin.features``, for the discriminator (tad_sr sheet 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from papers_shared.diffusion.swin_unet import SwinUNetConfig as Config
from papers_shared.diffusion.swin_unet import UNetModelSwin

__all__ = ["VARIANTS", "Config", "UNetModelSwin", "build"]

# Source: tad_sr sheet 3.1; ``small`` is ours, for training on one processor.
VARIANTS: dict[str, Config] = {
    "realsr": Config(),
    "faceir": Config(in_channels=8, out_channels=8, lq_size=512),
    "small": Config(
        image_size=16,
        in_channels=12,
        out_channels=12,
        model_channels=48,
        channel_mult=(1, 2),
        num_res_blocks=(1, 1),
        attention_resolutions=(16, 8),
        num_head_channels=32,
        swin_depth=2,
        swin_embed_dim=64,
        mlp_ratio=2,
        lq_size=16,
        lq_channels=12,
        norm_groups=8,
    ),
}


def build(config: Config | Mapping[str, Any]) -> UNetModelSwin:
    """The generator that ``config`` describes, with fresh weights.

    Raises:
        ValueError: an option is unknown or has a value that no network has.
    """
    return UNetModelSwin(Config.of(config))
