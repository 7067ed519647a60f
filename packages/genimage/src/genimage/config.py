"""The options of every command. No torch here: ``--help`` and errors answer at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from papers_shared.cli import option
from papers_shared.tables.command import ReproduceConfig

__all__ = [
    "AuditConfig",
    "BuildConfig",
    "DetectConfig",
    "EvalConfig",
    "ReproduceConfig",
    "TrainConfig",
]

Device = Literal["auto", "cpu", "cuda"]
DATA_HELP = "folder GENERATOR/{train,val}/{ai,nature}/FILES, or of WebDataset shards of it"
WEIGHTS_HELP = (
    "'shipped' (small, trained here), a file that train wrote, or a checkpoint in the layout of "
    "the detector's authors"
)
DETECTOR_HELP = (
    "of a file of others: resnet50, deit_s, swin_t, cnnspot, spec, f3net, gramnet, "
    "gramnet_author, timm:MODEL, probe:MODEL"
)


@dataclass(frozen=True)
class DetectConfig:
    """Say of each picture how likely it was generated, and how far to trust that.

    Exit status 0: every file was judged; 1: some could not be, they are listed; 2: bad arguments.
    """

    photos: list[Path] = option(..., "pictures or folders (with their subfolders)", positional=True)
    weights: str = option("shipped", WEIGHTS_HELP)
    detector: str = option("", DETECTOR_HELP)
    sure: float = option(0.9, "answer 'unsure' between 1 - SURE and SURE")
    stability: bool = option(True, "judge re-encoded copies too; 'unsure' where they disagree")
    device: Device = option("auto", "where to compute")
    output: Path | None = option(None, "also write the verdicts as JSON")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the data lie and how they are indexed."""

    data: Path = option(..., DATA_HELP, positional=True)
    index: Path | None = option(None, "index file (default: beside the data, else in the cache)")
    reindex: bool = option(False, "build the index anew")
    verify: bool = option(
        False, "decode every file while indexing, to find damaged ones, if that was not done yet"
    )


@dataclass(frozen=True, kw_only=True)
class EvalConfig(DataConfig):
    """Test detectors on every generator: accuracy matrix, degradations, metrics of each class."""

    weights: list[str] = option(["shipped"], WEIGHTS_HELP + "; several make a matrix")
    detector: str = option("", DETECTOR_HELP)
    mode: Literal["train", "val"] = option("val", "which split")
    subsets: list[str] = option([], "only these generators")
    forms: list[Literal["raw", "matched"]] = option(
        ["raw", "matched"], "as the files are; with the same crop, JPEG and compressions on both"
    )
    degrade: list[str] = option([], "lr:112 lr:64 jpeg:65 jpeg:30 blur:3 blur:5, or 'paper'")
    match_quality: int = option(96, "JPEG quality of the matched form (4:4:4)")
    crop_only: bool = option(False, "crop without the detector's resize")
    limit: int | None = option(None, "only the first pictures of each class and generator")
    threshold: float = option(0.5, "a picture is called generated above it")
    sure: float = option(0.9, "between 1 - SURE and SURE the answer is 'unsure'")
    stability: bool = option(False, "also the share of verdicts that survive re-encoding")
    max_unreadable: float = option(0.01, "share of unreadable files that is tolerated")
    batch_size: int = option(64, "pictures a step")
    workers: int = option(2, "processes that decode")
    device: Device = option("auto", "where to compute")
    output: Path | None = option(None, "also write every record as JSON")
    heatmap: Path | None = option(None, "draw the accuracy matrix as a PNG")


@dataclass(frozen=True, kw_only=True)
class AuditConfig(DataConfig):
    """What gives the classes away without looking at a pixel: formats, sizes, JPEG tables."""

    subsets: list[str] = option([], "only these generators")
    seed: int = option(0, "of the folds that the classifier is tested on")
    output: Path | None = option(None, "also write the report as JSON")


@dataclass(frozen=True)
class BuildConfig:
    """Make a benchmark in GenImage's layout: same sizes and formats on both sides."""

    output: Path = option(..., "folder to write", positional=True)
    real: list[Path] = option(..., "folders of real photos")
    generated: list[str] = option(..., "NAME=FOLDER for each generator")
    size: int = option(256, "side of the square crops")
    view: Literal["resize", "crop"] = option("resize", "short side to SIZE first, or crop only")
    format: Literal["png", "jpeg"] = option("png", "of the files, both classes")
    quality: int = option(96, "of JPEG files (4:4:4)")
    val: float = option(0.2, "share of the pictures that goes to val/")
    balance: bool = option(True, "as many real as generated pictures in each generator's folder")
    shards: int = option(0, "write WebDataset shards of so many files instead of folders")
    seed: int = option(0, "of the split")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataConfig):
    """Train a detector on the train/ pictures of some generators, by its authors' recipe.

    Started again with the same output folder, it goes on from the newest checkpoint there.
    """

    detector: str = option("resnet50", "resnet50, swin_t, cnnspot, ...; timm:MODEL, probe:MODEL")
    subsets: list[str] = option([], "generators to train on (default: all)")
    output: Path | None = option(None, "folder of the run (default: runs/DETECTOR)")
    init: Path | None = option(None, "start from these weights (ImageNet's, or a checkpoint)")

    epochs: int = option(10, "passes over the training pictures")
    batch_size: int = option(64, "pictures an update, over all processes")
    optimizer: Literal["sgd", "adam", "adamw"] = option("adamw", "sgd has momentum 0.9")
    nesterov: bool = option(False, "of sgd")
    dampening: float = option(0.0, "of sgd's momentum (Spec: 0.9)")
    lr: float = option(5e-4, "learning rate after the warm-up")
    lr_end: float = option(1e-6, "at the end of the cosine")
    schedule: Literal["cosine", "constant", "plateau"] = option(
        "cosine", "plateau: a tenth whenever the validation accuracy stands still for 5 epochs"
    )
    warmup: float = option(0.0, "epochs of linear warm-up")
    warmup_lr: float = option(0.0, "where it begins")
    cooldown: float = option(0.0, "of the epochs, those at lr_end behind the cosine")
    weight_decay: float = option(0.05, "penalty of the weights")
    clip: float | None = option(None, "largest norm of the gradient")
    smoothing: float = option(0.0, "of the labels")
    view: Literal["centre", "crop", "random_resized"] = option(
        "crop", "the detector's own; a random crop after its resize; scale 0.08 to 1"
    )
    resize: int | None = option(
        None, "short side before the crop, in training and validation (default: the detector's)"
    )
    augment: Literal["none", "blur_jpeg", "randaugment", "augmix"] = option(
        "none", "blur_jpeg is CNNSpot's; augmix is three splits with a Jensen-Shannon loss"
    )
    augment_probability: float = option(0.5, "of CNNSpot's blur and of its JPEG")
    augment_sigma: float = option(3.0, "largest sigma of CNNSpot's blur")
    augment_quality: int = option(30, "lowest quality of CNNSpot's JPEG")
    flip: bool = option(True, "mirror half of the pictures")
    erasing: float = option(0.0, "probability of erasing a rectangle (pixel noise)")
    mixup: float = option(0.0, "alpha of mixup")
    cutmix: float = option(0.0, "alpha of cutmix")
    limit: int | None = option(None, "only the first pictures of each class and generator")
    val_limit: int | None = option(1000, "validation pictures of each class")
    max_unreadable: float = option(0.01, "share of unreadable files that is tolerated")

    seed: int = option(0, "of every draw")
    mixed_precision: Literal["no", "fp16", "bf16"] = option("no", "of the network")
    accumulate: int = option(1, "updates are cut into so many passes")
    workers: int = option(2, "processes that prepare pictures")
    log_every: int = option(50, "updates between log lines")
    save_every: int = option(1000, "updates between checkpoints")
    tensorboard: bool = option(False, "also log for tensorboard")
