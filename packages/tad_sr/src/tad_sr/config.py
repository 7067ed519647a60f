"""The options of every command. No torch here: ``--help`` and errors answer at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from papers_shared.cli import option
from papers_shared.diffusion.commands import (
    AUTOENCODER_HELP,
    DenoiserConfig,
    EvalConfig,
    PairsConfig,
    UpscaleConfig,
)
from papers_shared.tables.command import ReproduceConfig

__all__ = ["EvalConfig", "ReproduceConfig", "TeacherConfig", "TrainConfig", "UpscaleConfig"]


@dataclass(frozen=True)
class TeacherConfig(DenoiserConfig):
    """Train a ResShift teacher (defaults: the authors' x4 recipe).

    Started again with the same output folder, it goes on from the newest checkpoint there.
    """

    prediction: Literal["sample", "residual"] = option(
        "sample", "what the network's output is: the clean latent, or its difference from z_y"
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(PairsConfig):
    """Distil a teacher into a one-step student (defaults: the authors' x4 recipe).

    Started again with the same output folder, it goes on from the newest checkpoint there, the
    discriminator and both optimizers included.
    """

    teacher: str = option(..., "the teacher's weights: resshift_realsrx4_s15_v1.pth, or train's")
    variant: str = option("", "network of a file that does not say it itself; guessed if left out")
    autoencoder: str = option("", AUTOENCODER_HELP)
    output: Path = option(Path("runs/tad_sr"), "folder of the run")
    steps: int = option(30_000, "updates")
    batch_size: int = option(64, "pairs an update, over all processes")
    accumulate: int = option(1, "updates are cut into so many passes")
    lr: float = option(5e-5, "learning rate of the student after the warm-up")
    lr_discriminator: float = option(5e-5, "learning rate of the discriminator")
    warmup: int = option(5000, "updates of linear warm-up of the student")
    ema_decay: float = option(0.999, "of the averaged weights")

    distill_type: Literal["HSD", "SDS", "none"] = option("HSD", "score distillation")
    score_distill_target: Literal["teacher", "gt"] = option("teacher", "what HSD refers to")
    regression_weight: float = option(1.0, "of the regression to the teacher's output")
    hsd_weight: float = option(1.0, "of the score distillation (faces: 0.1)")
    use_gan: bool = option(True, "the adversarial loss")
    gan_weight: float = option(0.02, "of the adversarial loss (faces: 0.2)")
    uniform_sampling: bool = option(False, "score steps from all but the noisiest, not the first 3")
    noise: Literal["uniform", "gaussian"] = option(
        "uniform", "of score and discriminator: as the authors' code, or as the diffusion"
    )
    double_scale: bool = option(True, "scale the score's input twice, as the authors' code does")
    use_fixed_time: bool = option(True, "the student starts at T-1; else at 3, 7, 11 or 14")
    c_dim: int = option(64, "logits a position of the discriminator")

    target_cache: int = option(
        0, "compute the teacher's output for so many pairs once and train on these; 0: always anew"
    )
    cache_folder: Path | None = option(None, "where the cache lies (default: the output folder)")
    validate_every: int = option(2000, "updates between validations")
    validation: str = option("val_sr", "folder with lq/ and gt/, or val_sr; '' for none")
    validation_first: int | None = option(None, "only the first pairs, this many")
    mixed_precision: Literal["no", "bf16"] = option("no", "of student and discriminator")
    workers: int = option(4, "processes that prepare pairs")
    seed: int = option(123_456, "of every draw")
    log_every: int = option(100, "updates between log lines")
    save_every: int = option(1000, "updates between checkpoints")
    tensorboard: bool = option(False, "also log for tensorboard")
