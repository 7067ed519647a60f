"""A small training run with everything random: augmentation, dropout, momentum, schedule, EMA."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers_shared.training import Run
from papers_shared.training.objects import Objects

TOTAL_STEPS = 40


class Points:
    """Points of two classes; every fetch adds noise from numpy's global generator."""

    def __init__(self, size: int, *, noise: float) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(size) % 2
        self.points = torch.randn(size, 8, generator=generator) + self.labels[:, None]
        self.noise = noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = self.noise * torch.from_numpy(np.random.standard_normal(8)).float()
        return self.points[index] + noise, self.labels[index]


def flip_signs(sample: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random augmentation through the generator that the loader gives."""
    point, label = sample
    return point * (torch.rand(8, generator=generator) < 0.9), label


def train(
    output: Path,
    *,
    total_steps: int = TOTAL_STEPS,
    dropout: float = 0.3,
    workers: int = 0,
    pause: float = 0.0,
    stop_at: int = -1,
    stop_signal: int = signal.SIGTERM,
    size: int = 52,
    lr: float = 0.1,
    **options: Any,
) -> dict[str, Tensor]:
    """Train, going on where ``output`` left off; returns weights and averaged weights.

    Args:
        dropout: 0 for a run that one and several processes share.
        pause: seconds to wait in each step.
        stop_at: the step in which rank 0 gets the stop_signal.
        size: samples in the data set.
    """
    torch.set_num_threads(1)
    settings = {"seed": 7, "ema_decay": 0.9, "log_every": 3, "save_every": 10, **options}
    run = Run(output, config={"lr": lr}, **settings)
    loader = run.loader(
        Points(size, noise=0.1), batch_size=8, transform=flip_signs, workers=workers
    )
    model: Any = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 2))
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    scheduler: Any = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TOTAL_STEPS)
    model, optimizer, scheduler = run.prepare(model, optimizer, scheduler)
    for points, labels in run.steps(loader, total_steps):
        with run.accumulate():
            loss = F.cross_entropy(model(points), labels)
            run.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        run.log(loss=loss, lr=scheduler.get_last_lr()[0])
        if run.epoch_done:
            run.record(epoch_ended=run.epoch)
        if stop_at == run.step and run.is_main:
            os.kill(os.getpid(), stop_signal)
        time.sleep(pause)
    assert run.finish().is_file(), "every process may read the weights"
    weights = run.accelerator.unwrap_model(model).state_dict()
    assert run.ema is not None
    averaged = {f"ema.{name}": value for name, value in run.ema.model.state_dict().items()}
    return {**weights, **averaged}


@contextlib.contextmanager
def slow_writes() -> Iterator[None]:
    """The finished weights are written late, as those of a large network are."""
    write = Objects.write_weights

    def late(*args: Any, **options: Any) -> None:
        time.sleep(0.5)
        write(*args, **options)

    Objects.write_weights = late  # type: ignore[method-assign]
    yield
    Objects.write_weights = write  # type: ignore[method-assign]


def two_processes(output: Path) -> None:
    """What test_training_processes.py compares; runs under torchrun."""
    train(output / "smooth", dropout=0.0)
    with slow_writes():
        train(output / "whole")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    try:
        train(output / "stopped", stop_at=14)
    except SystemExit as stop:
        (output / f"rank_{rank}.txt").write_text(f"world {world} status {stop.code}")
    train(output / "stopped")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    if "accelerate" in sys.modules:
        raise SystemExit("importing papers_shared.training has imported accelerate")
    if sys.argv[1] == "two":
        two_processes(Path(sys.argv[2]))
    else:
        train(Path(sys.argv[2]), pause=0.05)
