"""The ``upscale`` command of the packages: photos of any kind through a ResShift-like network."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from papers_shared.complexity import count_macs, measure_latency
from papers_shared.devices import pick_device
from papers_shared.diffusion.commands import NetworkConfig, UpscaleConfig
from papers_shared.diffusion.families import SMALL, Family, load_pipeline
from papers_shared.diffusion.latents import latent_factor
from papers_shared.diffusion.pipeline import ResShiftPipeline
from papers_shared.inference import (
    Estimate,
    available_memory,
    count_tiles,
    even_tile,
    plan_tile,
    upscale_files,
)
from papers_shared.inference.memory import keep_freed_memory

LARGEST_TILE = 512  # the authors' tile
CPU_TILE_WITH_ATTENTION = 128  # larger ones are dearer where the autoencoder attends globally


def prepared_pipeline(config: NetworkConfig, family: Family) -> ResShiftPipeline:
    """The pipeline that a command's options name, on its device.

    Raises:
        ValueError: an option does not fit; float16 on a CPU.
    """
    device = pick_device(config.device, precision=config.precision)
    if device.type == "cpu":
        keep_freed_memory()
    pipeline = load_pipeline(
        family, config.weights, variant=config.variant, autoencoder=config.autoencoder
    )
    for module in (pipeline.unet, pipeline.vae):
        # Not ModelMixin.to, which warns of modules that stay in float32 where there are none.
        torch.nn.Module.to(module, getattr(torch, config.precision))
    return pipeline.to(device)


class PipelineUpscaler:
    """A pipeline as ``papers_shared.inference.upscale_files`` calls it.

    Args:
        pipeline: on its device.
        steps: of the chain; None: what the network is made for.
        tile: side of the tiles in pixels of the photo; None: the largest that fits into memory.
        overlap: of the tiles, at most half a tile.
        batch_size: tiles at once.

    Raises:
        ValueError: steps out of range, or the smallest tile does not fit into memory.
    """

    def __init__(
        self,
        pipeline: ResShiftPipeline,
        *,
        steps: int | None = None,
        tile: int | None = None,
        overlap: int = 16,
        batch_size: int = 1,
    ) -> None:
        self.pipeline, self.batch_size = pipeline, batch_size
        self.steps = pipeline.default_steps if steps is None else steps
        pipeline.scheduler.set_timesteps(self.steps)  # refused now, not once a photo
        multiple = pipeline.multiple
        if tile is None:
            attends = not isinstance(pipeline.vae, AutoencoderTiny)
            on_cpu = pipeline.device.type == "cpu"
            largest = CPU_TILE_WITH_ATTENTION if on_cpu and attends else LARGEST_TILE
            sides = range(multiple, max(largest, multiple) + 1, multiple)
            tile = plan_tile(available_memory(pipeline.device), self.bytes_of_tile, sides)
        self.tile = -(-tile // multiple) * multiple
        self.overlap = min(overlap, self.tile // 2)

    @property
    def scale(self) -> int:
        """Output pixels an input pixel."""
        return self.pipeline.scale

    def __call__(self, image: Tensor, *, seed: int, progress: Callable[[int, int], None]) -> Tensor:
        """(3, H, W) in [0, 1] -> (3, H s, W s) in [0, 1]."""
        return self.pipeline.enlarge(
            image,
            self.steps,
            seed=seed,
            tile=self.tile,
            overlap=self.overlap,
            batch_size=self.batch_size,
            progress=progress,
        )

    def bytes_of_tile(self, side: int) -> int:
        """Peak memory of one tile, roughly: eight maps of the widest part of each network."""
        vae, unet = self.pipeline.vae.config, self.pipeline.unet.config
        size = torch.finfo(self.pipeline.unet.dtype).bits // 8
        picture = (side * self.scale) ** 2 * vae.block_out_channels[0]
        latent = (side // self.pipeline.pixels_per_latent) ** 2 * max(
            4 * unet.swin_embed_dim, 2 * unet.model_channels
        )
        return 8 * size * self.batch_size * max(picture, latent)

    def estimate(self, height: int, width: int) -> Estimate:
        """Tiles, seconds and bytes for a photo."""
        multiple = self.pipeline.multiple
        rows, columns = (
            even_tile(side, tile=self.tile, overlap=self.overlap, multiple=multiple)
            for side in (height, width)
        )
        tiles = count_tiles(height, width, tile=self.tile, overlap=self.overlap)
        seconds = tiles * self._macs(rows, columns) / macs_per_second(str(self.pipeline.device))
        return Estimate(tiles, seconds, self.bytes_of_tile(max(rows, columns)))

    @functools.lru_cache(maxsize=8)  # noqa: B019  an upscaler lives as long as its command
    def _macs(self, rows: int, columns: int) -> float:
        """Multiply-accumulates of one tile: encoding, all steps, decoding."""
        pipeline = self.pipeline
        unet, vae = pipeline.unet, pipeline.vae
        factor = latent_factor(vae)
        large = (rows * self.scale, columns * self.scale)
        latent = (1, unet.config.in_channels, large[0] // factor, large[1] // factor)
        condition = (1, unet.config.lq_channels, rows, columns)
        hidden = (1, vae.config.latent_channels, *latent[2:])

        def operations(module: torch.nn.Module, *shapes: tuple[int, ...]) -> int:
            given = [torch.empty(shape, dtype=unet.dtype, device="meta") for shape in shapes]
            return count_macs(module, given, rule="flop_counter").total

        step = operations(unet, latent, (1,), condition)
        encoder, decoder = operations(vae.encoder, (1, 3, *large)), operations(vae.decoder, hidden)
        return (self.steps * step + encoder + decoder) / 2


@functools.cache
def macs_per_second(device: str) -> float:
    """What a 3x3 convolution reaches here: multiply-accumulates a second (median of five)."""
    conv = torch.nn.Conv2d(64, 64, 3, padding=1).to(device)
    x = torch.randn(1, 64, 64, 64, device=device)
    with torch.no_grad():
        taken = measure_latency(lambda: conv(x), warmup=1, repeats=5, device=device)
    return 64 * 64 * 9 * 64 * 64 / taken.median


def run_upscale(config: UpscaleConfig, family: Family) -> int:
    """Enlarge photos; the exit status is 1 when one of several failed."""
    if config.weights == SMALL and family.shipped(SMALL).is_file():
        print(
            f"{family.package}: the small network trained here (see its card); {family.released}",
            flush=True,
        )
    upscaler = PipelineUpscaler(
        prepared_pipeline(config, family),
        steps=config.steps,
        tile=config.tile,
        overlap=config.overlap,
        batch_size=config.batch_size,
    )
    return upscale_files(
        config.photos,
        config.output,
        upscaler,
        scale=config.scale,
        seed=config.seed,
        colour=config.colour,
        recursive=config.recursive,
        overwrite=config.overwrite,
        max_pixels=config.max_pixels,
    ).status
