"""The options of every command. No torch here: ``--help`` and errors answer at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from papers_shared.cli import option
from papers_shared.restoration.commands import TrainConfig as Shared
from papers_shared.restoration.restore_commands import EnlargeConfig, EvalConfig
from papers_shared.tables.command import ReproduceConfig

__all__ = [
    "DistillConfig",
    "EnlargeConfig",
    "EvalConfig",
    "OptionsConfig",
    "ReproduceConfig",
    "TrainConfig",
]

Method = Literal[
    "scratch",
    "logits",
    "fitnet",
    "at",
    "fakd",
    "fakd_authors",
    "rkd",
    "csd",
    "dukd",
    "dukd_fakd",
    "zoom_in",
    "zoom_out",
    "zoom_in_out",
    "consistency",
    "zoom_out_true",
]
# Methods that ask no teacher.
ALONE: tuple[Method, ...] = ("scratch", "zoom_out_true")
# Options that are handed to the method, where they are given.
METHOD_OPTIONS = (
    "pixel_weight",
    "kd_weight",
    "cells",
    "zoom_out",
    "probability",
    "operations",
    "released_order",
    "step_mode",
    "feature_weight",
)
STUDENT_HELP = (
    "network: a variant of the README, ARCH(argument=value, ...) with ARCH one of EDSR, RCAN, "
    "SwinIR, or module:Class of your own, importable from this folder"
)
TEACHER_HELP = (
    "network: a published one (rlfn_x2, rlfn_x4, bsrn_x2, dat_light_x4, ...), whose weights are "
    "in the catalogue, or as for --student with --teacher-weights"
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a student with a teacher's help, or from scratch.

    Started again with the same output folder, it goes on from the newest checkpoint there.

    Raises:
        ValueError: the options do not go together.
    """

    student: str = option(..., STUDENT_HELP)
    teacher: str = option("", TEACHER_HELP)
    teacher_weights: str = option("", "file of a teacher without weights in the catalogue")
    teacher_key: str = option("", "entry of that file, such as params (default: averaged first)")
    method: Method = option("dukd", "how the student is trained; see the README")
    scale: int = option(4, "of the enlargement: 2, 3 or 4")
    output: Path | None = option(None, "folder of the run (default: runs/METHOD)")

    data: list[str] = option(
        ["bsds500_train"],
        "folders of photos, names of data sets (bsds500_train, skimage), lmdb folders of basicsr",
    )
    pairs: list[Path] = option(
        [], "instead of photos: folders with input/ and target/, paired by natural sort"
    )
    low_cache: Path | None = option(
        None, "where reduced photos are kept, by checksum (default: low/ in the run's folder)"
    )
    patch: int = option(48, "side of the low-resolution patches")
    pool: int = option(
        0, "cut so many patches beforehand and keep the teacher's answers; 0: new ones each time"
    )
    pool_seed: int = option(0, "of the pool's patches")
    repeat: int = option(80, "patches of each photo an epoch, without a pool")
    augment: bool = option(True, "flip and transpose patches: 8 views")
    batch_size: int = option(16, "patches an update, over all processes")

    pixel_weight: float | None = option(None, "of losses against true pictures (default: method's)")
    kd_weight: float | None = option(None, "of losses against the teacher (default: the method's)")
    cells: int | None = option(None, "zoom-in cells an update (default: the method's)")
    zoom_out: bool | None = option(None, "true or false (default: the method's)")
    probability: float | None = option(None, "of each invertible operation (default: the method's)")
    operations: str | None = option(None, "of i, h, v, t: inversion, flips, transposition")
    released_order: bool | None = option(
        None, "true: undo operations in the released code's order, which is wrong for one in eight"
    )
    step_mode: Literal["joint", "released"] | None = option(
        None, "one optimizer step an update, or two as the released code"
    )
    feature_weight: float | None = option(None, "of losses between feature maps")
    positions: list[str] = option([], "modules whose maps are compared (default: known ones)")
    teacher_positions: list[str] = option([], "the teacher's, where they are called otherwise")
    vgg: str = option("", "csd: torchvision's file vgg19-dcbb9e9d.pth")

    steps: int = option(250_000, "updates")
    lr: float = option(1e-4, "learning rate of Adam at the start; betas 0.9 and 0.99")
    lr_schedule: Literal["multistep", "cosine"] = option(
        "multistep", "steps down at the milestones, or half a cosine"
    )
    milestones: list[int] = option([], "multistep: updates after which the rate falls")
    lr_factor: float = option(0.1, "multistep: by which it falls")
    lr_end: float = option(1e-6, "cosine: the last rate")
    ema_decay: float = option(0.999, "of the averaged weights, which are then the result; 0: none")
    init: str = option("", "start from these weights, a file or a name of the shipped")
    init_from: str = option("", "start from these, of another scale: the upsampler begins anew")

    channels_last: bool = option(False, "layout of the pictures in memory; often faster")
    mixed_precision: Literal["no", "bf16", "fp16"] = option("no", "of both networks")
    validation: str = option("", "photos as above, or a folder with input/ and target/; '': none")
    validate_every: int = option(5000, "updates between validations")
    validation_first: int | None = option(None, "only the first pictures, this many")
    workers: int = option(0, "processes that prepare patches")
    seed: int = option(0, "of every draw but the pool's")
    log_every: int = option(100, "updates between log lines")
    save_every: int = option(1000, "updates between checkpoints")
    tensorboard: bool = option(False, "also log for tensorboard")

    def __post_init__(self) -> None:
        if self.scale not in (2, 3, 4):
            raise ValueError(f"scale is 2, 3 or 4, not {self.scale}")
        if self.method in ALONE and self.teacher:
            raise ValueError(f"{self.method} asks no teacher; leave --teacher out")
        if self.method not in ALONE and not self.teacher:
            raise ValueError(
                f"{self.method} needs --teacher, for example rlfn_x{self.scale}; "
                "--method scratch has none"
            )
        if (self.method == "csd") != bool(self.vgg):
            raise ValueError("csd and --vgg go together: torchvision's file vgg19-dcbb9e9d.pth")
        if self.init and self.init_from:
            raise ValueError("--init and --init-from both say where to start; give one")
        if self.pool and self.pool < self.batch_size:
            raise ValueError(f"a pool of {self.pool} patches gives no batch of {self.batch_size}")
        if self.step_mode == "released" and self.mixed_precision == "fp16":
            raise ValueError(
                "the released step mode keeps a gradient over two optimizer steps, and fp16 scales "
                "gradients anew for each; choose bf16 or no mixed precision, or --step-mode joint"
            )
        self.shared()

    def shared(self) -> Shared:
        """What concerns pictures and learning rates, as other restoration trainings have it."""
        return Shared(
            task="sr",
            scale=self.scale,
            variant=self.student,
            output=self.output,
            photos=self.data,
            pairs=self.pairs,
            low_cache=self.low_cache,
            patch=self.scale * self.patch,
            repeat=self.repeat,
            augment=self.augment,
            batch_size=self.batch_size,
            steps=self.steps,
            lr=self.lr,
            lr_schedule=self.lr_schedule,
            milestones=self.milestones,
            lr_factor=self.lr_factor,
            lr_end=self.lr_end,
            ema_decay=self.ema_decay,
            validation=self.validation,
            validate_every=self.validate_every,
            validation_first=self.validation_first,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainConfig):
    """Distil a teacher into a student of yours, on your photos: DUKD with one optimizer step.

    The same as ``train``, with settings for one machine and an afternoon.
    """

    teacher: str = option(..., TEACHER_HELP)
    pool: int = option(
        4000, "cut so many patches beforehand and keep the teacher's answers; 0: new ones each time"
    )
    steps: int = option(20_000, "updates")
    lr: float = option(5e-4, "learning rate of Adam at the start; betas 0.9 and 0.99")
    lr_schedule: Literal["multistep", "cosine"] = option(
        "cosine", "steps down at the milestones, or half a cosine"
    )


@dataclass(frozen=True, kw_only=True)
class OptionsConfig:
    """Turn an option file of the authors' repository into one for ``dukd train --config``."""

    source: Path = option(..., "such as train_EDSR_x4.yml", positional=True)
    target: Path = option(..., "YAML file to write", positional=True)
