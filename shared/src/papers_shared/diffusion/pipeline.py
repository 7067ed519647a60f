"""A diffusers pipeline that enlarges pictures by residual shifting, whatever their size.

The packages' pipelines are subclasses; denoisers are given to diffusers by ``as_diffusers_model``.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor, nn

from papers_shared.diffusion.latents import (
    NoiseField,
    condition_of,
    decode,
    encode,
    enlarge,
    latent_factor,
)
from papers_shared.diffusion.scheduler import ResShiftScheduler
from papers_shared.images import from_pil, to_uint8
from papers_shared.inference import Origin, count_tiles, run_tiled
from papers_shared.training.seeds import seed_from

PRIOR = -1  # the step under which the chain's first noise is drawn


def as_diffusers_model(network: type[nn.Module], config: type, *, module: str) -> type:
    """A network of ours as a diffusers model: ``save_pretrained``, ``from_pretrained``, ``config``.

    Args:
        network: built from one ``config`` alone.
        config: a dataclass with ``of`` and defaults; its fields become the model's arguments.
        module: where the class will be found again.
    """
    fields = dataclasses.fields(config)
    hints = typing.get_type_hints(config)

    def __init__(self: Any, **options: Any) -> None:  # noqa: N807
        network.__init__(self, config.of(options))  # type: ignore[attr-defined]

    parameters = [
        inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name]
        )
        for f in fields
    ]
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    __init__.__signature__ = inspect.Signature([own, *parameters])  # type: ignore[attr-defined]
    name = f"{network.__name__}Model"
    doc = f"``{network.__name__}`` as a diffusers model; arguments are the fields of its Config."
    members = {
        "__init__": register_to_config(__init__),
        "__module__": module,
        "__doc__": doc,
        "config_name": "config.json",
    }
    return type(name, (network, ModelMixin, ConfigMixin), members)


@dataclasses.dataclass
class UpscaleOutput(BaseOutput):
    """Result of a pipeline.

    Attributes:
        images: PIL pictures, or a tensor (B, 3, H s, W s) in [0, 1].
    """

    images: list[Image.Image] | Tensor


class ResShiftPipeline(DiffusionPipeline):
    """Pictures in, enlarged pictures out.

    Args:
        unet: predicts the clean latent (or what ``scheduler.config.prediction_type`` says).
        vae: diffusers' ``VQModel`` or ``AutoencoderTiny``.
        scheduler: ``ResShiftScheduler``; its ``scale_factor`` is the enlargement.

    Source: dit_sr sheet 4.1 and 4.4, tad_sr sheet 4.7.
    """

    model_cpu_offload_seq = "unet->vae"

    def __init__(self, unet: nn.Module, vae: nn.Module, scheduler: ResShiftScheduler) -> None:
        super().__init__()
        self.register_modules(unet=unet, vae=vae, scheduler=scheduler)

    @property
    def scale(self) -> int:
        """Output pixels an input pixel."""
        return self.scheduler.config.scale_factor

    @property
    def pixels_per_latent(self) -> int:
        """Input pixels a latent pixel: 1 for x4 with an f4 autoencoder, 8 for the faces' f8."""
        factor = latent_factor(self.vae)
        if factor % self.scale:
            raise ValueError(f"an f{factor} autoencoder cannot serve enlargement by {self.scale}")
        return factor // self.scale

    @property
    def multiple(self) -> int:
        """Sides of a tile have to be multiples of this many input pixels."""
        return self.unet.alignment * self.pixels_per_latent

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image | Sequence[Image.Image] | Tensor,
        num_inference_steps: int | None = None,
        *,
        seed: int = 0,
        tile: int = 128,
        overlap: int = 16,
        batch_size: int = 1,
        output_type: str = "pil",
        return_dict: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> UpscaleOutput | tuple[Any]:
        """Enlarge.

        Args:
            image: PIL pictures, or a tensor (3, H, W) or (B, 3, H, W) in [0, 1]; any size.
            num_inference_steps: of the chain; by default all that the network was trained with,
                or one where the scheduler's ``timestep_spacing`` is ``trailing``.
            seed: of the noise; picture i of a batch has noise of its own.
            tile: longest side that goes through the network in one piece, in input pixels;
                rounded up to ``multiple``.
            overlap: of the tiles, in input pixels; at most half a tile.
            batch_size: tiles at once.
            output_type: ``pil``, or ``pt`` for a tensor in [0, 1] on the CPU.
            return_dict: False: a tuple.
            progress: called with (steps done, steps in all), counted over all tiles.

        Returns:
            the pictures; their values are clamped to [0, 1].

        Raises:
            ValueError: sizes or options that have no meaning, or the network returned NaN.
        """
        pictures = _as_tensors(image)
        if output_type not in ("pil", "pt"):
            raise ValueError(f"output_type {output_type!r} is neither pil nor pt")
        if output_type == "pt" and len({picture.shape for picture in pictures}) > 1:
            raise ValueError("pictures of several sizes make no tensor; use output_type='pil'")
        done = [
            self.enlarge(
                picture,
                num_inference_steps,
                seed=seed_from(seed, i),
                tile=tile,
                overlap=overlap,
                batch_size=batch_size,
                progress=progress,
            )
            for i, picture in enumerate(pictures)
        ]
        images: Any = torch.stack(done) if output_type == "pt" else [_as_pil(x) for x in done]
        return UpscaleOutput(images=images) if return_dict else (images,)

    def enlarge(
        self,
        picture: Tensor,
        num_inference_steps: int | None = None,
        *,
        seed: int = 0,
        tile: int = 128,
        overlap: int = 16,
        batch_size: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """One picture (3, H, W) in [0, 1] -> (3, H s, W s) in [0, 1], on the CPU.

        Arguments and errors as of the pipeline's call; all noise follows from ``seed``.
        """
        if tile < 1 or overlap < 0:
            raise ValueError(
                f"expected tile > 0 and overlap >= 0, got tile {tile} and overlap {overlap}"
            )
        steps = self.default_steps if num_inference_steps is None else num_inference_steps
        self.scheduler.set_timesteps(steps)
        tile = -(-tile // self.multiple) * self.multiple
        overlap = min(overlap, tile // 2)
        tiles = count_tiles(*picture.shape[1:], tile=tile, overlap=overlap)
        told = _StepProgress(progress, tiles=tiles, steps=steps)
        large = run_tiled(
            lambda tiles, origins: self._tiles(
                tiles, origins, seed=seed, after_step=told.after_step
            ),
            picture * 2 - 1,
            scale=self.scale,
            tile=tile,
            overlap=overlap,
            multiple=self.multiple,
            batch_size=batch_size,
            progress=told.after_tiles,
        )
        return (large / 2 + 0.5).clamp_(0, 1)

    @property
    def default_steps(self) -> int:
        """Steps of a chain if none are asked for."""
        one = self.scheduler.config.timestep_spacing == "trailing"
        return 1 if one else len(self.scheduler)

    def _tiles(
        self,
        tiles: Tensor,
        origins: Sequence[Origin],
        *,
        seed: int,
        after_step: Callable[[int], None],
    ) -> Tensor:
        """(N, 3, h, w) in [-1, 1] -> (N, 3, h s, w s) in [-1, 1]."""
        device, dtype = self._execution_device, self.unet.dtype
        ratio = self.pixels_per_latent
        corners = [(origin.top // ratio, origin.left // ratio) for origin in origins]
        # Tiles start on any pixel; what the noise is aligned to is the latent grid.
        field = NoiseField(seed, channels=self.unet.config.in_channels)
        size = tiles.shape[-2] // ratio, tiles.shape[-1] // ratio
        latents = self.sample(
            tiles.to(device, dtype),
            noise=lambda step: field.windows(step, corners, *size).to(device, dtype),
            after_step=lambda: after_step(len(tiles)),
        )
        return decode(self.vae, latents).float().clamp(-1, 1)

    def sample(
        self,
        lq: Tensor,
        *,
        noise: Callable[[int], Tensor],
        after_step: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """The chain over the scheduler's current timesteps.

        Args:
            lq: (N, 3, h, w) in [-1, 1], sides multiples of ``multiple``.
            noise: step index -> standard normal latents; ``PRIOR`` for the start.
            after_step: called after each step.

        Returns:
            the clean latent as predicted in the last step, (N, C, h', w').
        """
        scheduler = self.scheduler
        z_y = encode(self.vae, enlarge(lq, self.scale)).to(lq.dtype)
        condition = condition_of(self.unet.config, lq, z_y)
        z = scheduler.prior_sample(z_y, noise(PRIOR))
        for t in scheduler.timesteps.tolist():
            steps = torch.full((len(z),), t, device=z.device)
            output = self.unet(scheduler.scale_model_input(z, t), steps, condition)
            last = t == scheduler.timesteps[-1]
            stochastic = scheduler.config.algorithm_type == "ddpm" and not last
            out = scheduler.step(output, t, z, z_y, noise=noise(t) if stochastic else None)
            z = out.prev_sample
            after_step()
        return out.pred_original_sample


class _StepProgress:
    """Tells a callback of the steps done over all tiles.

    Args:
        callback: called as ``callback(done, total)``, or None.
        tiles: how many there are, as far as one knows; smaller ones may become necessary.
        steps: of a tile.
    """

    def __init__(
        self, callback: Callable[[int, int], None] | None, *, tiles: int, steps: int
    ) -> None:
        self.callback, self.steps = callback, steps
        self.finished, self.total, self.inside = 0, tiles * steps, 0

    def after_step(self, count: int) -> None:
        """A step of ``count`` tiles is done."""
        self.inside += count
        self._tell()

    def after_tiles(self, done: int, total: int) -> None:
        """So many tiles are done in all."""
        self.finished, self.total, self.inside = done * self.steps, total * self.steps, 0
        self._tell()

    def _tell(self) -> None:
        if self.callback is not None:
            self.callback(min(self.finished + self.inside, self.total), self.total)


def _as_tensors(image: Any) -> list[Tensor]:
    """Floats (3, H, W) in [0, 1] each."""
    expected = "expected PIL pictures, or floats (3, H, W) or (B, 3, H, W) in [0, 1]"
    if isinstance(image, Tensor):
        if image.ndim not in (3, 4) or image.shape[-3] != 3 or not image.is_floating_point():
            raise ValueError(f"{expected}, got {tuple(image.shape)} {image.dtype}")
        return list(image.float() if image.ndim == 4 else image.float()[None])
    pictures = [image] if isinstance(image, Image.Image) else list(image)
    if not pictures or not all(isinstance(picture, Image.Image) for picture in pictures):
        kinds = ", ".join(sorted({type(picture).__name__ for picture in pictures}))
        raise ValueError(f"{expected}, got a {type(image).__name__} of {kinds or 'nothing'}")
    return [from_pil(picture) for picture in pictures]


def _as_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(to_uint8(image).permute(1, 2, 0).numpy())
