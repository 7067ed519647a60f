"""The options of every command. No torch here: ``--help`` and errors answer at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from papers_shared.cli import option
from papers_shared.tables.command import ReproduceConfig

__all__ = ["EvalConfig", "ReproduceConfig", "SampleConfig", "TrainConfig"]

WEIGHTS_HELP = (
    "a file that train wrote, one of the authors' (U-DiT-B-400k.pt), or a released name that is "
    "in the cache or a mirror (U-DiT-B-400k)"
)
VARIANT_HELP = "network of a file that does not say it itself: U-DiT-S, U-DiT-B, DiT-XL/2, ..."
DATA_HELP = (
    "'cifar10' (pixels), a folder with one folder of pictures or of .npy latents a class, or the "
    "authors' cached latents (a folder with *_features and *_labels)"
)
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Make pictures of classes.

    A picture depends on its class and its seed alone: not on the batch, nor on the others.
    """

    weights: str = option(..., WEIGHTS_HELP)
    classes: list[int] = option([], "labels to make, one picture each (default: drawn by seed)")
    count: int = option(8, "pictures, going round the classes if there are more")
    output: Path = option(Path("samples"), "folder of the pictures (000000.png, ...)", short="-o")
    vae: str = option("", "folder of the autoencoder (AutoencoderKL) of a network of latents")
    variant: str = option("", VARIANT_HELP)
    guidance: float = option(1.5, "scale of classifier-free guidance; 1: none")
    guidance_channels: int = option(3, "so many first channels are guided; the authors' 3")
    steps: int = option(250, "evaluations of the network; 10 to 50 with --sampler dpm")
    sampler: Literal["ddpm", "ddim", "dpm"] = option("ddpm", "ancestral as the paper's, or other")
    seed: int = option(0, "picture i is drawn from seed + i")
    batch_size: int = option(8, "pictures at a time")
    merge: bool = option(True, "merge the feed-forward nets before")
    device: Device = option("auto", "where to compute")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a class-conditional network (defaults: the authors' recipe).

    Classes, channels and size are those of the data. Started again with the same output folder, it
    goes on from the newest checkpoint there.
    """

    data: str = option(..., DATA_HELP)
    data_path: Path | None = option(None, "where CIFAR-10 lies, if in no mirror")
    image_size: int = option(32, "pictures are brought to this side")
    limit: int | None = option(None, "only the first examples, this many")
    variant: str = option("U-DiT-S", VARIANT_HELP)
    hidden_size: int | None = option(None, "another width than the variant's")
    num_heads: int | None = option(None, "other heads than the variant's")
    depth: list[int] = option([], "other blocks than the variant's, 5 numbers")
    output: Path = option(Path("runs/u_dit"), "folder of the run")
    steps: int = option(400_000, "updates")
    batch_size: int = option(256, "examples an update, over all processes")
    accumulate: int = option(1, "updates are cut into so many passes")
    lr: float = option(1e-4, "learning rate, constant")
    weight_decay: float = option(0.0, "of AdamW")
    ema_decay: float = option(0.9999, "of the averaged weights, which are sampled from")
    class_dropout: float = option(0.1, "share of labels dropped for guidance; 0: no guidance")
    label_dropout: Literal["", "independent", "joint"] = option(
        "", "another than the variant's: the levels' labels one by one (authors), or together"
    )
    merge_in_training: bool = option(
        True, "compute with merged branches of the feed-forward nets: the same gradients, faster"
    )
    learn_sigma: bool = option(True, "learn the variance, too")
    flip: bool = option(True, "mirror pictures at random (latents never)")
    mixed_precision: Literal["no", "bf16", "fp16"] = option("no", "of the network")
    workers: int = option(0, "processes that load")
    seed: int = option(0, "of every draw")
    log_every: int = option(100, "updates between log lines")
    save_every: int = option(5000, "updates between checkpoints")
    tensorboard: bool = option(False, "also log for tensorboard")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Measure pictures against others, or how well a network finds noise.

    With --samples and --reference: FID, precision and recall. With --weights and --data: the mean
    squared error of the predicted noise on held-out examples, at fixed steps and noise.
    """

    samples: Path | None = option(None, "folder of pictures that sample made")
    reference: Path | None = option(None, "folder of real pictures")
    inception: Path | None = option(None, "FID's Inception weights, if they cannot be downloaded")
    weights: str = option("", WEIGHTS_HELP)
    variant: str = option("", VARIANT_HELP)
    data: str = option("cifar10", DATA_HELP + "; of CIFAR-10 the test pictures")
    data_path: Path | None = option(None, "where CIFAR-10 lies, if in no mirror")
    first: int = option(1000, "only the first examples, this many")
    batch_size: int = option(50, "examples at a time")
    seed: int = option(0, "of steps and noise")
    device: Device = option("auto", "where to compute")
    output: Path | None = option(None, "also write the result as JSON")
