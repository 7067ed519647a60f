"""Options of the training command. No torch: ``--help`` and errors answer at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from papers_shared.cli import option
from papers_shared.restoration.task import Kind, Task


class Stage(NamedTuple):
    """Crops of side ``patch`` in batches of ``batch`` from step ``start`` on."""

    patch: int
    batch: int
    start: int


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a network that restores pictures.

    Started again with the same output folder, it goes on from the newest checkpoint there.

    Raises:
        ValueError: the options do not go together.
    """

    task: Kind = option("sr", "what is undone; deblur and real_denoise need --pairs")
    scale: int = option(1, "of super-resolution: 2, 3 or 4")
    channels: int = option(3, "3: RGB; 1: grey (dejpeg: luma)")
    level: list[float] = option(
        [], "deviation of the noise in levels of 255, or JPEG quality; two numbers: a range"
    )
    variant: str = option(..., "which network; see the README for the names")
    output: Path | None = option(None, "folder of the run (default: runs/VARIANT)")

    photos: list[str] = option(
        ["bsds500_train"],
        "folders of photos, names of data sets (bsds500_train, skimage), lmdb folders of basicsr",
    )
    pairs: list[Path] = option(
        [], "instead of photos: folders with input/ and target/, paired by natural sort"
    )
    low_cache: Path | None = option(
        None, "where sr keeps reduced photos, by checksum (default: low/ in the run's folder)"
    )
    patch: int = option(
        128, "side of the target's crops; smaller pictures are continued by reflection"
    )
    repeat: int = option(80, "crops of each photo an epoch")
    augment: bool = option(True, "flip and transpose crops: 8 views")

    batch_size: int = option(16, "crops an update, over all processes")
    progressive: list[str] = option(
        [], "later crops and batches, PATCH:BATCH:FROM_STEP each (in YAML in quotes)"
    )
    accumulate: int = option(1, "updates are cut into so many passes")
    steps: int = option(500_000, "updates")
    loss: Literal["l1", "charbonnier", "mse"] = option("l1", "in the network's own value range")
    mixup: float = option(0.0, "probability of mixing a batch with itself, Beta(1.2, 1.2)")
    optimizer: Literal["adam", "adamw"] = option("adam", "betas 0.9 and 0.999")
    weight_decay: float = option(0.0, "of adamw")
    lr: float = option(2e-4, "learning rate at the start")
    lr_schedule: Literal["multistep", "cosine"] = option(
        "multistep", "steps down at the milestones, or half a cosine"
    )
    milestones: list[int] = option([], "multistep: updates after which the rate falls")
    lr_factor: float = option(0.5, "multistep: by which it falls")
    lr_constant: int = option(0, "cosine: updates at the first rate before it begins")
    lr_end: float = option(1e-6, "cosine: the last rate")
    clip: float = option(0.0, "largest norm of the gradient; 0: any")
    ema_decay: float = option(0.0, "of the averaged weights, which are then the result; 0: none")
    init: str = option("", "start from these weights, of this network")
    init_from: str = option(
        "", "start from these, of another task or scale; a tail of another shape begins anew"
    )

    channels_last: bool = option(False, "layout of the pictures in memory; often faster")
    mixed_precision: Literal["no", "bf16", "fp16"] = option("no", "of the network")
    validation: str = option(
        "", "photos as above, or a folder with input/ and target/; '' for none"
    )
    validate_every: int = option(5000, "updates between validations")
    validation_first: int | None = option(None, "only the first pictures, this many")
    workers: int = option(0, "processes that prepare crops")
    seed: int = option(0, "of every draw")
    log_every: int = option(100, "updates between log lines")
    save_every: int = option(1000, "updates between checkpoints")
    tensorboard: bool = option(False, "also log for tensorboard")

    def __post_init__(self) -> None:
        _check_level(self)
        _check_numbers(self)
        _ = self.stages
        if self.pairs and self.task in ("denoise", "dejpeg"):
            raise ValueError(f"{self.task} makes its inputs from --photos; --pairs has none")
        if not self.pairs and self.task in ("deblur", "real_denoise"):
            raise ValueError(f"{self.task} needs --pairs: folders with input/ and target/")
        if self.init and self.init_from:
            raise ValueError("--init and --init-from both say where to start; give one")

    @property
    def level_range(self) -> tuple[float, float] | None:
        """Lowest and highest level; equal if there is one."""
        return (self.level[0], self.level[-1]) if self.level else None

    def to_task(self) -> Task:
        """What the network is made for; a range of levels is no level."""
        level = self.level[0] if len(self.level) == 1 else None
        return Task(self.task, scale=self.scale, channels=self.channels, level=level)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Sizes of crops and batches, by the step from which they hold.

        Raises:
            ValueError: an entry of ``progressive`` is not what it should be.
        """
        stages = [Stage(self.patch, self.batch_size, 0)]
        for text in self.progressive:
            try:
                stage = Stage(*(int(number) for number in text.split(":")))
            except (TypeError, ValueError):
                raise ValueError(
                    f"progressive {text!r} is not PATCH:BATCH:FROM_STEP (YAML reads 1:2:3 as a "
                    "time: put it in quotes)"
                ) from None
            if stage.start <= stages[-1].start or min(stage) < 1:
                raise ValueError(f"progressive {text} does not begin after step {stages[-1].start}")
            stages.append(stage)
        for stage in stages:
            if stage.patch % self.scale:
                raise ValueError(f"patch {stage.patch} is no multiple of the scale {self.scale}")
            if stage.batch % self.accumulate:
                raise ValueError(f"batch {stage.batch} cannot be cut into {self.accumulate} passes")
        return tuple(stages)


def _check_level(config: TrainConfig) -> None:
    """A level or a range where the task has one, in the order and within what a Task allows."""
    if config.task in ("denoise", "dejpeg"):
        if len(config.level) not in (1, 2) or config.level[0] > config.level[-1]:
            raise ValueError(
                f"{config.task} needs --level, one number or the lowest and highest of a range, "
                f"not {config.level}"
            )
        Task(config.task, level=config.level[-1])
        if config.task == "dejpeg":
            Task(config.task, level=config.level[0])
            if any(quality != int(quality) for quality in config.level):
                raise ValueError(f"JPEG qualities are whole numbers, not {config.level}")
        elif config.level[0] < 0:  # 0 is fine here: a range of noise may begin with none
            raise ValueError(f"the noise's deviation is 0 to 255 levels, not {config.level[0]}")
    elif config.level:
        raise ValueError(f"{config.task} has no level; {config.level} was given")
    config.to_task()


def _check_numbers(config: TrainConfig) -> None:
    for name in ("patch", "batch_size", "steps", "repeat", "accumulate", "validate_every"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is at least 1, not {getattr(config, name)}")
    if config.lr <= 0:
        raise ValueError(f"lr is positive, not {config.lr}")
    if config.weight_decay and config.optimizer != "adamw":
        raise ValueError("weight_decay is that of --optimizer adamw")
    if config.milestones and config.lr_schedule != "multistep":
        raise ValueError("milestones are those of --lr-schedule multistep")
    if not 0 <= config.mixup <= 1:
        raise ValueError(f"mixup is a probability, not {config.mixup}")
    if not 0 <= config.ema_decay < 1:
        raise ValueError(f"ema_decay is from 0 to below 1, not {config.ema_decay}")
