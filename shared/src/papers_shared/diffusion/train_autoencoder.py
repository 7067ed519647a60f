"""Train the small f4 autoencoder that the packages' small models work in.

``python -m papers_shared.diffusion.train_autoencoder --output runs/autoencoder``

It is diffusers' ``AutoencoderTiny``: residual blocks without normalisation, so a tile decodes as
the same part of the whole picture does. The latent is not quantised; noise on it while training
makes the decoder forgiving of a denoiser's errors.
"""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from papers_shared.cli import Command, run
    from papers_shared.diffusion.commands import AutoencoderConfig

    command = Command(
        "train the small autoencoder",
        AutoencoderConfig,
        "papers_shared.diffusion.train_autoencoder:main",
    )
    raise SystemExit(
        run("train_autoencoder", command.help, {"train": command}, ["train", *sys.argv[1:]])
    )

from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, ModelMixin  # noqa: F401  pipelines look ModelMixin up here
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from papers_shared.checkpoints import save_state_dict
from papers_shared.data.photos import load_photos, random_crop, random_flip
from papers_shared.diffusion.commands import AutoencoderConfig
from papers_shared.training import Run


class SmallAutoencoder(AutoencoderTiny):
    """``AutoencoderTiny`` of factor 4; its config holds what it is built from and nothing else.

    Args:
        block_out_channels: width of the three levels, of encoder and decoder alike.
        latent_channels: of the latent.
        scaling_factor, force_upcast: of ``AutoencoderTiny``, which sets the latter to False.
    """

    @register_to_config
    def __init__(
        self,
        block_out_channels: tuple[int, ...] = (32, 32, 32),
        latent_channels: int = 12,
        scaling_factor: float = 1.0,
        force_upcast: bool = False,
    ) -> None:
        # The parent registers its own arguments; register_to_config keeps only the outer ones.
        AutoencoderTiny.__init__.__wrapped__(
            self,
            encoder_block_out_channels=block_out_channels,
            decoder_block_out_channels=block_out_channels,
            num_encoder_blocks=(0, 1, 2),
            num_decoder_blocks=(3, 2, 0),
            latent_channels=latent_channels,
            scaling_factor=scaling_factor,
            force_upcast=force_upcast,
        )


def build(*, width: int, latent_channels: int, scaling_factor: float = 1.0) -> SmallAutoencoder:
    """The autoencoder with fresh weights: (B, 3, H, W) in [-1, 1] <-> (B, latent, H/4, W/4)."""
    return SmallAutoencoder((width,) * 3, latent_channels, scaling_factor)


def gradients(x: Tensor) -> Tensor:
    """Differences of neighbours, right and below, in one flat tensor."""
    return torch.cat([x.diff(dim=-1).flatten(), x.diff(dim=-2).flatten()])


def train(config: AutoencoderConfig) -> AutoencoderTiny:
    """Train from scratch; see ``AutoencoderConfig``. Resumes from ``config.output``.

    Raises:
        FileNotFoundError: there are no photos.
    """
    photos = [photo for source in config.photos for photo in load_photos(source)]
    photos = [photo for photo in photos if min(photo.shape[1:]) >= config.crop]
    run = Run(
        config.output,
        seed=config.seed,
        config={k: v for k, v in asdict(config).items() if k != "output"},
        mixed_precision=config.mixed_precision,
        save_every=500,
    )
    model: Any = build(width=config.width, latent_channels=config.latent_channels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.0)
    total = config.steps
    scheduler = LambdaLR(optimizer, lambda step: min(1, step / 100) * (1 - step / total) ** 0.5)
    loader = run.loader(
        range(len(photos) * 100),
        batch_size=config.batch_size,
        transform=lambda i, g: random_flip(
            random_crop(photos[i % len(photos)], config.crop, g), g
        ).clone(),
    )
    model, optimizer, scheduler = run.prepare(model, optimizer, scheduler)
    for crops in run.steps(loader, total):
        with run.accumulate():
            x = crops.float() / 127.5 - 1
            with run.accelerator.autocast():
                z = model.encode(x).latents.float()
                y = model.decode(z + config.noise * torch.randn_like(z)).sample.float()
            loss = F.l1_loss(y, x) + F.l1_loss(gradients(y), gradients(x))
            # Keeps latents near 1 in magnitude, inside the range where decoding is not clamped.
            run.backward(loss + 1e-3 * z.square().mean())
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        run.log(loss=loss, mse=F.mse_loss(y, x), latent_std=z.std())
    run.finish()
    return run.accelerator.unwrap_model(model)


@torch.inference_mode()
def scaling_factor(model: AutoencoderTiny, photos: list[Tensor]) -> float:
    """One over the standard deviation of the latents of photos, as diffusers uses it."""
    stds = []
    for photo in photos:
        height, width = (side // 4 * 4 for side in photo.shape[1:])
        x = photo[None, :, :height, :width].float() / 127.5 - 1
        stds.append(model.encode(x).latents.std())
    return 1 / torch.stack(stds).mean().item()


def main(config: AutoencoderConfig) -> int:
    """Train, and write ``autoencoder.safetensors`` (float16) into the output folder."""
    model = train(config).eval().cpu()
    factor = scaling_factor(model, load_photos(config.photos[0])[:50])
    path = config.output / "autoencoder.safetensors"
    halves = {name: value.half() for name, value in model.state_dict().items()}
    metadata = {
        "width": str(config.width),
        "latent_channels": str(config.latent_channels),
        "scaling_factor": f"{factor:.5f}",
    }
    save_state_dict(halves, path, metadata=metadata)
    print(f"{path}: latents scaled by {factor:.3f}")
    return 0
