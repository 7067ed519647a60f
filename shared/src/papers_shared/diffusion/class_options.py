"""The options of class-conditional networks' commands. No torch here: ``--help`` answers at once.

A package adds its own defaults by deriving from these classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from papers_shared.cli import option

DATA_HELP = (
    "'cifar10' (pixels), a folder with one folder of pictures or of .npy latents a class, a folder "
    "that `latents` wrote, or the authors' cached latents (a folder with *_features and *_labels)"
)
VAE_HELP = (
    "autoencoder of a network of latents: 'taef2', or a folder of diffusers' AutoencoderKL "
    "(the authors' is stabilityai/sd-vae-ft-ema)"
)
LIMIT_HELP = "only so many examples: of a folder drawn at random, of CIFAR-10 the first"
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class ClassSampleConfig:
    """Make pictures of classes.

    A picture depends on its class and its seed alone: not on the batch, nor on the others, nor on
    how many processes share the work (torchrun starts several).
    """

    weights: str = option("", "a file that train wrote, or one of the authors'")
    classes: list[int] = option(
        [], "labels to make, one picture each (default: drawn by seed)", short="--class"
    )
    count: int | None = option(
        None, "pictures, going round the classes (default: one a class given, else 8)"
    )
    output: Path = option(Path("samples"), "folder of the pictures (000000.png, ...)", short="-o")
    grid: bool = option(False, "also one picture of all, grid.png")
    vae: str = option("", VAE_HELP)
    variant: str = option("", "network of a file that does not say it itself")
    guidance: float = option(1.5, "scale of classifier-free guidance; 1: none", short="--cfg")
    guidance_channels: int | None = option(
        None, "so many first channels are guided (default: 3 of 3 or 4, as the authors'; else all)"
    )
    steps: int = option(250, "evaluations of the network; 10 to 50 with --sampler dpm")
    sampler: Literal["ddpm", "ddim", "dpm"] | None = option(
        None, "ddpm: ancestral as the paper's (default: that, or what a pipeline's folder holds)"
    )
    seed: int = option(0, "picture i is drawn from seed + i")
    batch_size: int = option(8, "pictures at a time and process")
    merge: bool = option(
        True, "merge the feed-forward nets before (not of a pipeline's folder, used as it is)"
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = option("no", "of the network")
    device: Device = option("auto", "where to compute")


@dataclass(frozen=True, kw_only=True)
class ClassTrainConfig:
    """Train a class-conditional network (defaults: DiT's recipe).

    Classes, channels and size are those of the data. Started again with the same output folder, it
    goes on from the newest checkpoint there. Start it by `accelerate launch` or torchrun for
    several processes or machines.
    """

    data: str = option(..., DATA_HELP)
    data_path: Path | None = option(None, "where CIFAR-10 lies, if in no mirror")
    image_size: int = option(32, "pictures are brought to this side")
    limit: int | None = option(None, LIMIT_HELP)
    variant: str = option("", "the network")
    init: str = option("", "weights to start from (fine-tuning); label tables only if they fit")
    hidden_size: int | None = option(None, "another width than the variant's")
    num_heads: int | None = option(None, "other heads than the variant's")
    depth: list[int] = option([], "other blocks than the variant's")
    output: Path = option(Path("runs/generation"), "folder of the run")
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
    checkpointing: bool = option(False, "recompute activations: less memory, a third more time")
    fsdp: bool = option(False, "weights, gradients and AdamW's state are cut over the processes")
    learn_sigma: bool = option(True, "learn the variance, too")
    flip: bool = option(True, "mirror pictures at random (latents: where both are stored)")
    mixed_precision: Precision = option("no", "of the network")
    workers: int = option(0, "processes that load")
    seed: int = option(0, "of every draw")
    log_every: int = option(100, "updates between log lines")
    save_every: int = option(5000, "updates between checkpoints")
    tensorboard: bool = option(False, "also log for tensorboard")


@dataclass(frozen=True, kw_only=True)
class ClassEvalConfig:
    """Measure pictures against others, or how well a network finds noise.

    With --samples and --reference: FID, sFID, inception score, precision and recall as ADM's
    evaluator computes them; with --features cifar10 a Frechet distance in the features of a
    classifier of CIFAR-10, which is not FID. With --weights and --data: the mean squared error of
    the predicted noise on held-out examples, at fixed steps and noise.
    """

    samples: Path | None = option(None, "folder of pictures that sample made, or .npz (arr_0)")
    reference: Path | None = option(
        None, "folder of real pictures, .npz of pictures or ADM's statistics; 'cifar10' (test)"
    )
    features: Literal["inception", "cifar10"] = option("inception", "whose features")
    inception: Path | None = option(None, "FID's Inception weights, if they cannot be downloaded")
    weights: str = option("", "a file that train wrote, or one of the authors'")
    variant: str = option("", "network of a file that does not say it itself")
    data: str = option("cifar10", DATA_HELP + "; of CIFAR-10 the test pictures")
    data_path: Path | None = option(None, "where CIFAR-10 lies, if in no mirror")
    first: int = option(1000, LIMIT_HELP)
    batch_size: int = option(50, "examples at a time")
    seed: int = option(0, "of steps and noise")
    device: Device = option("auto", "where to compute")
    output: Path | None = option(None, "also write the result as JSON")


@dataclass(frozen=True, kw_only=True)
class LatentsConfig:
    """Write a folder's pictures as latents, once; a run that was cut off goes on where it was.

    Pictures are cropped as ADM does; each is stored as it is and mirrored.
    """

    photos: Path = option(..., "folder with one folder of pictures a class", positional=True)
    output: Path = option(..., "folder of the latents", short="-o")
    vae: str = option("taef2", VAE_HELP)
    image_size: int = option(256, "pictures are cropped to this side")
    flip: bool = option(True, "store mirrored pictures' latents, too")
    shard: int = option(1024, "pictures a file")
    batch_size: int = option(8, "pictures at a time")
    seed: int = option(0, "of the draws of an autoencoder that has a variance")
    device: Device = option("auto", "where to compute")


@dataclass(frozen=True, kw_only=True)
class ClassExportConfig:
    """Write a trained network in a small form: merged feed-forward nets, float16."""

    weights: Path = option(..., "a file that train wrote (model_ema.safetensors)", positional=True)
    output: Path = option(..., "file to write (.safetensors)", short="-o")
    merge: bool = option(True, "merge the feed-forward nets")
    half: bool = option(True, "float16, half the size")
