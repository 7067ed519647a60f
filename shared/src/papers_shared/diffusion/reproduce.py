"""What the tables of the ResShift-like papers compute alike (see papers_shared.tables.recipe)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers_shared.complexity import count_macs, count_parameters
from papers_shared.data.photos import PairFolder
from papers_shared.diffusion import vq
from papers_shared.diffusion.latents import condition_of, decode, encode, enlarge
from papers_shared.diffusion.pipeline import ResShiftPipeline
from papers_shared.diffusion.scheduler import ResShiftScheduler
from papers_shared.images import to_uint8
from papers_shared.metrics.restoration import LPIPS, PSNR
from papers_shared.tables.recipe import Context, Measured

VAL_SR = "val_sr"
Enlarge = Callable[[Tensor, int], Tensor]


def val_sr(context: Context) -> PairFolder:
    """The pairs of the recipe's asset ``val_sr``."""
    return PairFolder(context.assets[VAL_SR].path)


# ---- counts


class Encode(nn.Module):
    """An autoencoder's way in, for counting: picture -> latent, its 1x1 convolution included."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor) -> Tensor:
        return encode(self.vae, x)


class Decode(nn.Module):
    """An autoencoder's way out, for counting: latent -> picture."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        return decode(self.vae, z)


def denoiser_inputs(config: Any) -> list[Tensor]:
    """Latent, step and low-quality picture of the nominal size, on the meta device."""
    side, lq = config.image_size, config.lq_size
    shapes = [(1, config.in_channels, side, side), (1,), (1, config.lq_channels, lq, lq)]
    return [torch.empty(shape, device="meta") for shape in shapes]


def autoencoder_counts(config: dict[str, Any], *, side: int) -> dict[str, dict[str, float]]:
    """Parameters (M) and multiply-accumulates (G) of an autoencoder and its two ways.

    Args:
        config: in the authors' form.
        side: of the picture.
    """
    with torch.device("meta"):
        model = vq.build(config)
    factor = 2 ** (len(config["ddconfig"]["ch_mult"]) - 1)
    latent = (1, config["embed_dim"], side // factor, side // factor)

    # Distances to all codes are a matrix product in the authors' code; diffusers' cdist counts 0.
    search = latent[2] * latent[3] * config["n_embed"] * config["embed_dim"] / 1e9

    def macs(module: nn.Module, shape: tuple[int, ...]) -> float:
        return count_macs(module, shape, rule="flop_counter").total / 2e9

    return {
        "whole": {"params": count_parameters(model) / 1e6},
        "encoder": {
            "params": count_parameters(model.encoder) / 1e6,
            "macs": macs(Encode(model), (1, 3, side, side)),
        },
        "decoder": {
            "params": count_parameters(model.decoder) / 1e6,
            "macs": macs(Decode(model), latent) + search,
        },
    }


# ---- pictures


def gradient_energy(image: Tensor) -> float:
    """Mean squared difference of neighbouring pixels, right and below: (…, H, W)."""
    across, down = image.diff(dim=-1).square().mean(), image.diff(dim=-2).square().mean()
    return (across + down).item() / 2


def picture_scores(
    pairs: PairFolder,
    enlarge_picture: Enlarge,
    *,
    first: int | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
    reference: Sequence[Tensor] | None = None,
) -> tuple[dict[str, float], list[Tensor]]:
    """PSNR-Y, LPIPS and gradient energy, means over pairs of 8-bit pictures.

    Args:
        pairs: what is enlarged.
        enlarge_picture: (lq (3, h, w) in [0, 1], index) -> (3, h s, w s) in [0, 1].
        first: only the first pairs.
        progress: called as ``progress(done, total, what)``.
        reference: pictures whose gradient energy is 1; the ground truth by default.

    Returns:
        means by metric, and the pictures (uint8).
    """
    psnr, lpips = PSNR(channels="y"), LPIPS()
    count = len(pairs) if first is None else min(first, len(pairs))
    sums = {"psnr": 0.0, "lpips": 0.0, "gradient_energy": 0.0}
    pictures = []
    for i in range(count):
        pair = pairs[i]
        image, truth = to_uint8(enlarge_picture(pair.lq, i)), to_uint8(pair.gt)
        sharp = truth if reference is None else reference[i]
        sums["psnr"] += psnr(image[None], truth[None]).item()
        sums["lpips"] += lpips(image[None], truth[None]).item()
        sums["gradient_energy"] += gradient_energy(image.float()) / gradient_energy(sharp.float())
        pictures.append(image)
        progress(i + 1, count, "pictures")
    return {name: value / count for name, value in sums.items()}, pictures


def sampled(pipeline: ResShiftPipeline, steps: int | None, *, seed: int) -> Enlarge:
    """Enlarging by a pipeline; picture i has noise of its own."""
    return lambda lq, i: pipeline.enlarge(lq, steps, seed=seed + i, tile=512)


def interpolated(mode: str, *, scale: int = 4) -> Enlarge:
    """Enlarging by torch's interpolation."""
    options: dict[str, Any] = {} if mode == "nearest" else {"align_corners": False}

    def enlarge_picture(lq: Tensor, i: int) -> Tensor:
        large = F.interpolate(lq[None], scale_factor=scale, mode=mode, **options)
        return large[0].clamp(0, 1)

    return enlarge_picture


@torch.no_grad()
def denoising_mse(
    model: nn.Module,
    vae: Any,
    scheduler: ResShiftScheduler,
    pairs: PairFolder,
    *,
    first: int,
    seed: int,
) -> float:
    """Squared error of the predicted clean latent, mean over the first pairs and all steps."""
    generator = torch.Generator().manual_seed(seed)
    errors = []
    for i in range(first):
        lq, gt = pairs[i].lq[None] * 2 - 1, pairs[i].gt[None] * 2 - 1
        z0, z_y = encode(vae, gt), encode(vae, enlarge(lq, scheduler.config.scale_factor))
        count = len(scheduler)
        t = torch.arange(count)
        condition = condition_of(model.architecture, lq, z_y)
        many = [x.expand(count, *x.shape[1:]) for x in (z0, z_y, condition)]
        noise = torch.randn(many[0].shape, generator=generator)
        z_t = scheduler.add_noise(many[0], noise, t, z_y=many[1])
        output = model(scheduler.scale_model_input(z_t, t), t, many[2])
        clean = scheduler.predict_original(output, t, z_t, many[1])
        errors.append((clean - many[0]).square().mean().item())
    return sum(errors) / len(errors)


def over_seeds(rows: Sequence[dict[str, float]]) -> dict[str, Measured]:
    """Mean and sample standard deviation of each column over repetitions."""
    values = {name: torch.tensor([r[name] for r in rows], dtype=torch.float64) for name in rows[0]}
    return {
        name: Measured(v.mean().item(), std=v.std().item() if len(v) > 1 else None, n=len(v))
        for name, v in values.items()
    }
