"""Training by the detectors' own recipes: ``python -m genimage.train DATA --config cnnspot``.

Several processes: ``accelerate launch -m genimage.train DATA --config resnet50``.
"""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from genimage.cli import main as command_line

    raise SystemExit(command_line(["train", *sys.argv[1:]]))

import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.utils.data import Dataset

from genimage.augment import Augment, InValidation, blur_jpeg_of, jensen_shannon_loss
from genimage.config import TrainConfig
from genimage.detectors import (
    Detector,
    Preset,
    network_input,
    preset_of,
    two_logits,
    with_geometry,
)
from genimage.eval import judge_entries, limited
from genimage.index import Entry, Index, open_index
from genimage.metrics import Scores, score
from genimage.official import load_weights_into
from genimage.pictures import Geometry, Unreadable, decode
from papers_shared.training import Run

# CNNSpot's plateau schedule: epochs without a gain before the rate falls, and where it ends.
PLATEAU, STOP_LR = 5, 1e-6


@dataclass(frozen=True)
class Result:
    """What a training ends with.

    Attributes:
        path: the last network, as safetensors; the best of validation beside it (model_best).
        detector: it, in eval mode.
        scores: of the last network on the validation pictures.
    """

    path: Path
    detector: Detector
    scores: Scores


class Decoded(Dataset):
    """Decoded pictures and labels; in place of one that cannot be read comes the next of its class.

    Args:
        root: of the index.
        entries: which files.
    """

    def __init__(self, root: Path, entries: Sequence[Entry]) -> None:
        self.root, self.entries = root, entries

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        label = self.entries[number].label
        for step in range(len(self.entries)):
            entry = self.entries[(number + step) % len(self.entries)]
            if entry.label != label:
                continue
            try:
                return decode(entry.read(self.root)), label
            except (Unreadable, OSError) as error:
                print(f"{entry.path} is left out: {error}", file=sys.stderr)
        raise ValueError(f"no file of class {label} under {self.root} can be read")


def make_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Over the parameters that are trained; AdamW leaves biases and norms without decay."""
    trained = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            [p for _, p in trained],
            lr=config.lr,
            momentum=0.9,
            dampening=config.dampening,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
    if config.optimizer == "adam":
        parameters = [p for _, p in trained]
        return torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
    groups = [
        {"params": [p for _, p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for _, p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr)


def learning_rate_factor(config: TrainConfig, step: int, per_epoch: int) -> float:
    """Of ``lr``: linear warm-up, then constant, or half a cosine down to ``lr_end``."""
    done = step / per_epoch
    if done < config.warmup:
        start = config.warmup_lr / config.lr
        return start + (1 - start) * (step + 1) / (config.warmup * per_epoch + 1)
    if config.schedule == "constant":
        return 1.0
    share = (done - config.warmup) / max(config.epochs - config.cooldown - config.warmup, 1e-9)
    end = config.lr_end / config.lr
    return end + (1 - end) * (1 + math.cos(math.pi * min(share, 1.0))) / 2


def make_scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig, per_epoch: int) -> Any:
    """By the step, or (``plateau``) by the validation accuracy, as CNNSpot stops early."""
    if config.schedule == "plateau":
        return ReduceLROnPlateau(
            optimizer,
            mode="max",
            factor=0.1,
            patience=PLATEAU - 1,  # torch acts at the first epoch beyond it
            threshold=1e-3,
            threshold_mode="abs",
        )
    return LambdaLR(optimizer, lambda step: learning_rate_factor(config, step, per_epoch))


@dataclass(frozen=True)
class Criterion:
    """From a batch of pixels to the loss.

    Attributes:
        detector: whose preset says how pixels become input, and what the outputs mean.
        config: the recipe.
    """

    detector: Detector
    config: TrainConfig

    def __call__(self, network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) or (B, splits, 3, S, S), labels (B,) -> scalar."""
        config, preset = self.config, self.detector.preset
        splits = images.shape[1] if images.ndim == 5 else 1
        x = network_input(images.flatten(0, 1) if splits > 1 else images, preset.pixels)
        if config.erasing:
            x = self._erase(x, splits)
        targets: Tensor = labels
        if config.mixup or config.cutmix:
            from timm.data import Mixup

            mix = Mixup(
                config.mixup, config.cutmix, num_classes=2, label_smoothing=config.smoothing
            )
            x, targets = mix(x, labels)
        out = network(x)
        logits = two_logits(out[1] if isinstance(out, tuple) else out, preset)
        if splits > 1:
            grouped = logits.unflatten(0, (-1, splits))
            return jensen_shannon_loss(grouped, labels, smoothing=config.smoothing)
        mixed = targets.is_floating_point()
        return F.cross_entropy(logits, targets, label_smoothing=0 if mixed else config.smoothing)

    def _erase(self, x: Tensor, splits: int) -> Tensor:
        """Pixel noise in a rectangle; with splits the first, clean one is spared."""
        from timm.data.random_erasing import RandomErasing

        erase = RandomErasing(self.config.erasing, mode="pixel", device=x.device.type)
        if splits == 1:
            return erase(x)
        grouped = x.unflatten(0, (-1, splits)).clone()
        for split in range(1, splits):
            grouped[:, split] = erase(grouped[:, split].contiguous())
        return grouped.flatten(0, 1)


def select(index: Index, config: TrainConfig) -> tuple[list[Entry], list[Entry]]:
    """The files to train on, and those of the same generators to validate on.

    Raises:
        ValueError: too many files cannot be read, or a split lacks a class.
    """
    index.refuse_if_broken(config.max_unreadable, subsets=config.subsets)
    out = []
    for mode, limit in (("train", config.limit), ("val", config.val_limit)):
        entries = limited(index.select(mode=mode, subsets=config.subsets), limit)
        if len({entry.label for entry in entries}) < 2:
            raise ValueError(f"{index.root}: {mode}/ of these generators holds one class only")
        out.append(entries)
    return out[0], out[1]


def geometry_of(preset: Preset, config: TrainConfig) -> Geometry:
    """From pictures to what is trained and validated on: one crop, the recipe's resize."""
    own = preset.geometry
    return replace(own, crops=1, resize=own.resize if config.resize is None else config.resize)


def validate(
    detector: Detector, root: Path, entries: Sequence[Entry], config: TrainConfig
) -> Scores:
    """On pictures of an index, with CNNSpot's augmentation where the training has it."""
    geometry, blur_jpeg = geometry_of(detector.preset, config), blur_jpeg_of(config)
    judged = judge_entries(
        with_geometry(detector.eval(), geometry),
        root,
        entries,
        before=None if blur_jpeg is None else InValidation(blur_jpeg, geometry),
        batch_size=128,
        workers=config.workers,
    )
    return score(judged.probabilities.tolist(), judged.labels.tolist())


def refuse_combinations(config: TrainConfig, preset: Preset) -> None:
    """Options that would silently train something else than they say.

    Raises:
        ValueError: the message names them.
    """
    mixes = bool(config.mixup or config.cutmix)
    if mixes and config.augment == "augmix":
        raise ValueError("--augment augmix has a loss of its own; leave out --mixup and --cutmix")
    if config.view == "centre" and preset.geometry.crops > 1:
        raise ValueError(
            f"--view centre of {config.detector} is {preset.geometry.crops} crops of a picture; "
            "train with --view crop or random_resized"
        )
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # torchrun's and accelerate's
    if mixes and config.batch_size // (processes * config.accumulate) % 2:
        raise ValueError(
            f"--mixup and --cutmix mix pairs: --batch-size {config.batch_size} over {processes} "
            f"processes and --accumulate {config.accumulate} must leave an even number"
        )


def by_first(run: Run, compute: Callable[[], Scores]) -> Scores:
    """What the first of several processes computes, given to all.

    Their batch norms differ (each has seen its own pictures), but the schedule and the end of the
    training have to be decided alike everywhere.
    """
    from accelerate.utils import broadcast_object_list

    (scores,) = broadcast_object_list([compute() if run.is_main else None])
    return scores


def train(config: TrainConfig) -> Result:
    """Train a detector; see ``TrainConfig``. Resumes from ``config.output``.

    Raises:
        ValueError: the configuration does not fit itself, the data or an earlier run.
        FileNotFoundError: the data are not here.
    """
    preset = preset_of(config.detector)
    refuse_combinations(config, preset)
    index = open_index(config.data, path=config.index, verify=config.verify, rebuild=config.reindex)
    trained_on = index.named(config.subsets)
    config = replace(config, subsets=trained_on if config.subsets else [])
    entries, held_out = select(index, config)
    intervals = (
        *("output", "workers", "log_every", "save_every", "tensorboard", "data", "index"),
        *("reindex", "verify", "max_unreadable"),
    )
    output = config.output or Path("runs") / config.detector.replace(":", "_")
    facts = {"detector": config.detector, "trained_on": trained_on, "data": index.root.name}
    run = Run(
        output,
        seed=config.seed,
        config={key: value for key, value in asdict(config).items() if key not in intervals},
        metadata=Detector(preset, nn.Identity(), facts=facts).metadata(),
        mixed_precision=config.mixed_precision,
        gradient_accumulation=config.accumulate,
        log_every=config.log_every,
        save_every=config.save_every,
        tensorboard=config.tensorboard,
    )
    detector = Detector(preset, facts=facts)
    load_weights_into(detector.network, config.init, preset.config)
    loader = run.loader(
        Decoded(index.root, entries),
        batch_size=config.batch_size,
        transform=Augment(geometry_of(preset, config), config),
        workers=config.workers,
    )
    optimizer = make_optimizer(detector.network, config)
    scheduler = make_scheduler(optimizer, config, loader.steps_per_epoch)
    network, optimizer, scheduler = run.prepare(detector.network, optimizer, scheduler)
    criterion = Criterion(detector, config)
    by_epoch = config.schedule == "plateau"

    def validated() -> Scores:
        return validate(detector, index.root, held_out, config)

    for images, labels in run.steps(loader, config.epochs * loader.steps_per_epoch):
        if run.new_epoch:
            network.train()
        with run.accumulate():
            loss = criterion(network, images, labels)
            run.backward(loss)
            if config.clip is not None and run.accelerator.sync_gradients:
                run.accelerator.clip_grad_norm_(network.parameters(), config.clip)
            optimizer.step()
            optimizer.zero_grad()
            if not by_epoch:
                scheduler.step()
        run.log(loss=loss)
        if run.epoch_done:
            balanced = by_first(run, validated).balanced
            run.record(balanced_accuracy=balanced)
            run.save(best=balanced)
            if by_epoch:
                scheduler.step(balanced / 100)
                if optimizer.param_groups[0]["lr"] < STOP_LR:
                    break

    path = run.finish()
    return Result(path, detector.eval(), by_first(run, validated))


def main(config: TrainConfig) -> int:
    """Train, and say where the network lies and how good it is."""
    from accelerate import PartialState

    result = train(config)
    s = result.scores
    if PartialState().is_main_process:
        print(
            f"{result.path}: {s.balanced:.1f} % on new pictures of the same generators (real "
            f"{s.accuracy_real:.1f}, generated {s.accuracy_generated:.1f})"
        )
    return 0
