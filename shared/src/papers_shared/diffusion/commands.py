"""Options of the commands that live here. No torch: ``--help`` and errors answer at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from papers_shared.cli import option


@dataclass(frozen=True)
class AutoencoderConfig:
    """Train the small f4 autoencoder on crops of photos."""

    output: Path = option(Path("runs/autoencoder"), "folder of the run")
    photos: list[str] = option(
        ["bsds500_train"], "folders of photos or names of data sets (bsds500_train, skimage)"
    )
    width: int = option(32, "channels of all layers")
    latent_channels: int = option(12, "channels of the latent, at a quarter of the picture's size")
    crop: int = option(64, "side of the training crops")
    batch_size: int = option(16, "crops an update")
    steps: int = option(4000, "updates")
    lr: float = option(2e-3, "learning rate at the start")
    noise: float = option(0.1, "standard deviation of the noise on the latent")
    mixed_precision: Literal["no", "bf16"] = option("no", "of the convolutions")
    seed: int = option(0, "of every draw")


@dataclass(frozen=True)
class PairsConfig:
    """Where the training pairs of a super-resolution network come from."""

    photos: list[str] = option(
        ["bsds500_train"],
        "folders of photos, subfolders included, or names of data sets (bsds500_train, skimage)",
    )
    crop: int = option(256, "side of the high-resolution crops")
    rescale: bool = option(
        True,
        "crop a square of the photo's short side and shrink it, as the authors do; otherwise crop "
        "at the photo's own resolution, and leave out smaller photos",
    )
    degradation: Literal["training", "testing", "face"] = option(
        "training",
        "Real-ESRGAN's two orders, the milder one of ResShift's test sets, or GFPGAN's for faces",
    )
    pool: int = option(0, "degrade so many pairs once and crop those; 0: degrade every sample")
    pool_size: int = option(160, "side of the pool's high-resolution pictures")
    pool_folder: Path | None = option(None, "where the pool lies (default: the run's folder)")
    pairs_seed: int = option(0, "of the pool")


Device = Literal["auto", "cpu", "cuda"]
WEIGHTS_HELP = (
    "'small' (trained here, ships with the package), a file in the authors' layout, one that train "
    "wrote, or a folder that save_pretrained wrote"
)
AUTOENCODER_HELP = (
    "of weights that do not come with theirs: 'small', or a file in the authors' layout "
    "(autoencoder_vq_f4.pth, ffhq512_vq_f8_dim8_face.pth)"
)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Which network a command runs, and how."""

    weights: str = option("small", WEIGHTS_HELP)
    variant: str = option("", "network of a file that does not say it itself; guessed if left out")
    autoencoder: str = option("", AUTOENCODER_HELP)
    steps: int | None = option(None, "of the chain (default: those the network is made for)")
    seed: int = option(0, "of the noise")
    precision: Literal["float32", "float16", "bfloat16"] = option("float32", "of the network")
    device: Device = option("auto", "where to compute")


@dataclass(frozen=True, kw_only=True)
class UpscaleConfig(NetworkConfig):
    """Enlarge photos: any size, grey, alpha, 16 bits; results are PNG files beside them.

    Each photo's noise follows from the seed and its name, so a folder gives the same results in any
    order and with any number of processes (accelerate launch).
    """

    photos: list[Path] = option(..., "pictures or folders of pictures", positional=True)
    output: Path | None = option(None, "file or folder of the results", short="-o")
    scale: int | None = option(None, "of the result, if smaller than the network's")
    colour: Literal["none", "wavelet", "adain"] = option("none", "match the photo's colours")
    tile: int | None = option(None, "side of the tiles in pixels of the photo (default: by memory)")
    overlap: int = option(16, "of the tiles")
    batch_size: int = option(1, "tiles at once")
    recursive: bool = option(False, "also photos in subfolders")
    overwrite: bool = option(True, "write results that are there already again")
    max_pixels: int | None = option(None, "largest result (default: by memory)")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(NetworkConfig):
    """Measure a network on pairs: enlarge FOLDER/lq, compare with FOLDER/gt."""

    data: str = option("val_sr", "folder with lq/ and gt/ (or hq/), or val_sr (32 pairs)")
    metrics: list[str] = option(
        ["psnr", "ssim", "lpips"], "psnr ssim lpips niqe; clipiqa musiq maniqa (pyiqa); fid"
    )
    output: Path | None = option(None, "folder that keeps the pictures and metrics.json")
    first: int | None = option(None, "only the first pairs, this many")
    tile: int = option(512, "side of the tiles in pixels of lq")


@dataclass(frozen=True)
class DenoiserConfig(PairsConfig):
    """Train a denoiser by residual shifting (defaults: the authors' x4 recipe).

    Started again with the same output folder, it goes on from the newest checkpoint there.
    """

    variant: str = option("realsr", "which network; see the README for the names")
    output: Path | None = option(None, "folder of the run (default: runs/VARIANT)")
    autoencoder: str = option("small", AUTOENCODER_HELP)
    init: Path | None = option(None, "start from these weights")
    steps: int = option(300_000, "updates")
    batch_size: int = option(64, "pairs an update, over all processes")
    accumulate: int = option(1, "updates are cut into so many passes")
    lr: float = option(5e-5, "learning rate after the warm-up")
    warmup: int = option(5000, "updates of linear warm-up")
    lr_schedule: Literal["constant", "cosine"] = option("constant", "after the warm-up")
    lr_end: float = option(2e-5, "learning rate at the end of the cosine")
    lpips_weight: float = option(0.0, "of LPIPS-VGG of the decoded picture in the loss (faces: 10)")
    ema_decay: float = option(0.999, "of the averaged weights")
    validate_every: int = option(10_000, "updates between validations")
    validation: str = option("val_sr", "folder with lq/ and gt/, or val_sr; '' for none")
    validation_first: int | None = option(None, "only the first pairs, this many")
    mixed_precision: Literal["no", "fp16", "bf16"] = option("no", "of the network")
    workers: int = option(4, "processes that prepare pairs")
    seed: int = option(123_456, "of every draw")
    log_every: int = option(100, "updates between log lines")
    save_every: int = option(1000, "updates between checkpoints")
    tensorboard: bool = option(False, "also log for tensorboard")
