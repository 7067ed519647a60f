"""Training of restoration networks: LIPT and IPT-V2 are trained by this loop."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from papers_shared.checkpoints import file_metadata, load_state_dict, load_strict
from papers_shared.restoration.commands import Stage, TrainConfig
from papers_shared.restoration.data import crop_batch, floats, mix, training_data
from papers_shared.restoration.family import (
    RestorationFamily,
    Restorer,
    load_restorer,
    network_metadata,
)
from papers_shared.restoration.task import Task
from papers_shared.restoration.validation import validation_pairs, validation_psnr
from papers_shared.training import Run

# What does not decide the result.
INTERVALS = (
    "output",
    "low_cache",
    "workers",
    "log_every",
    "save_every",
    "tensorboard",
    "validate_every",
    "validation",
    "validation_first",
)
CHARBONNIER_EPSILON = 1e-3  # of pictures in [0, 1]


@dataclass(frozen=True)
class Trained:
    """What a training gives.

    Attributes:
        path: the weights, averaged ones if there are any; ``load_restorer`` reads them.
        model: the network that holds them, in eval mode.
        loss: of the log's last line: a mean over steps, in the network's value range.
    """

    path: Path
    model: Restorer
    loss: float


def learning_rate_factor(config: TrainConfig, step: int) -> float:
    """The learning rate of update ``step`` (0, 1, ...) over the first one.

    ``multistep``: times ``lr_factor`` after each milestone. ``cosine``: 1 for ``lr_constant``
    updates, then half a cosine down to lr_end / lr.
    """
    if config.lr_schedule == "multistep":
        return config.lr_factor ** sum(step >= milestone for milestone in config.milestones)
    falling = max(1, config.steps - config.lr_constant)
    done = min(1.0, max(0, step - config.lr_constant) / falling)
    end = config.lr_end / config.lr
    return end + (1 - end) * (1 + math.cos(math.pi * done)) / 2


def loss_function(name: str, value_range: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean loss of pictures in [0, value_range]; charbonnier: sqrt(error^2 + epsilon^2)."""
    if name == "l1":
        return F.l1_loss
    if name == "mse":
        return F.mse_loss
    epsilon = CHARBONNIER_EPSILON * value_range
    return lambda image, target: ((image - target).square() + epsilon**2).sqrt().mean()


def stage_at(stages: tuple[Stage, ...], step: int) -> Stage:
    """The stage of progressive training in which update ``step`` falls."""
    return next(stage for stage in reversed(stages) if step >= stage.start)


def initialise(
    network: nn.Module, config: TrainConfig, *, family: RestorationFamily, task: Task
) -> None:
    """Take the first weights from ``config.init`` or ``config.init_from``, if given.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it does not fit; ``init_from`` may differ below a ``tail`` alone.
    """
    if config.init:
        start = load_restorer(family, config.init, variant=config.variant, task=task)
        load_strict(network, start.network.state_dict(), what=config.init)
    elif config.init_from:
        own = network.state_dict()
        given = _any_network(family, config.init_from).state_dict()
        fresh = [
            name
            for name, value in own.items()
            if "tail" in name.split(".") and value.shape != getattr(given.get(name), "shape", None)
        ]
        kept = {name: value for name, value in given.items() if name not in fresh}
        load_strict(network, {**kept, **{name: own[name] for name in fresh}}, what=config.init_from)
        anew = f"of another shape, so begun anew: {', '.join(fresh)}" if fresh else "all of it fits"
        print(f"starting from {config.init_from}; {anew}")


def _any_network(family: RestorationFamily, weights: str) -> nn.Module:
    """The network of a file, whatever its task."""
    path = family.path_of(weights)
    if path.is_file() and family.package not in file_metadata(path):
        state = load_state_dict(path)
        if (config := family.recognise(state)) is None:
            raise ValueError(f"{path} fits no known network of {family.package}")
        return family.load_official(state, config)
    return load_restorer(family, weights).network


def make_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam, or AdamW with its weight decay on everything."""
    if config.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), lr=config.lr)
    return torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)


def train_restorer(config: TrainConfig, family: RestorationFamily) -> Trained:
    """Train a network of ``family``; see ``TrainConfig``. Resumes from ``config.output``.

    Raises:
        ValueError: the configuration does not fit itself, the data or an earlier run.
        FileNotFoundError: photos are not here; the message says how to get them.
    """
    task, stages = config.to_task(), config.stages
    network_config = family.for_task(family.variant(config.variant), task)
    output = config.output or Path("runs") / config.variant
    judged = validation_pairs(config) if config.validation else []
    dataset, crops, described = training_data(
        config, low_cache=config.low_cache or output / "low", progress=_tell
    )
    run = Run(
        output,
        seed=config.seed,
        config={**_decisive(config), "network": network_config.to_dict()},
        metadata={**network_metadata(family, network_config, task), "trained_on": described},
        mixed_precision=config.mixed_precision,
        gradient_accumulation=config.accumulate,
        ema_decay=config.ema_decay or None,
        # IPT-V2's shifted windows have no part where a level of a crop is one window.
        find_unused_parameters=True,
        log_every=config.log_every,
        save_every=config.save_every,
        tensorboard=config.tensorboard,
    )
    _check_parts(config, processes=run.accelerator.num_processes)
    model = family.build(network_config)
    initialise(model, config, family=family, task=task)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    optimizer = make_optimizer(model, config)
    schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(config, step))
    largest = max(stage.batch for stage in stages)
    loader = run.loader(dataset, batch_size=largest, transform=crops, workers=config.workers)
    criterion = loss_function(config.loss, family.value_range)
    judge: Restorer | None = None
    if judged:  # a copy, free of accelerate's casts, for the average or the network itself
        twin = family.build(network_config)
        judge = Restorer(twin, config=network_config, task=task, family=family)
    model, optimizer, schedule = run.prepare(model, optimizer, schedule)
    model.train()

    for batch in run.steps(loader, config.steps):
        stage = stage_at(stages, run.step)
        with run.accumulate():
            count = len(batch["gt"]) * stage.batch // largest
            grid = 8 if task.kind == "dejpeg" else 1
            batch = crop_batch(batch, patch=stage.patch, count=count, scale=task.scale, grid=grid)
            low, high = floats(batch)
            if config.mixup:
                low, high = mix(low, high, probability=config.mixup)
            low = (low * family.value_range).contiguous(memory_format=layout)
            loss = criterion(model(low), high * family.value_range)
            run.backward(loss)
            if config.clip and run.accelerator.sync_gradients:
                run.accelerator.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        run.log(loss=loss)
        due = run.accelerator.sync_gradients and run.step % config.validate_every == 0
        if judge is not None and run.is_main and due:
            source = run.accelerator.unwrap_model(model) if run.ema is None else run.ema.model
            judge.network.load_state_dict(source.state_dict())
            run.record(psnr=validation_psnr(judge.to(low.device).eval(), judged))

    path = run.finish()
    path = path if run.ema is None else path.with_name("model_ema.safetensors")
    return Trained(path, load_restorer(family, str(path)), _last_loss(output / "log.jsonl"))


def _check_parts(config: TrainConfig, *, processes: int) -> None:
    for stage in config.stages:
        if stage.batch % (processes * config.accumulate):
            raise ValueError(
                f"batch {stage.batch} cannot be shared by {processes} processes x "
                f"{config.accumulate} passes"
            )


def _tell(done: int, count: int) -> None:
    if done % 50 == 0 or done == count:
        print(f"reduced {done} of {count} photos", flush=True)


def _last_loss(log: Path) -> float:
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line][-1]


def _decisive(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide the result; steps down do not depend on where they end."""
    settings = {key: value for key, value in asdict(config).items() if key not in INTERVALS}
    if config.lr_schedule == "multistep":
        settings["total_steps"] = settings.pop("steps")
    return settings
