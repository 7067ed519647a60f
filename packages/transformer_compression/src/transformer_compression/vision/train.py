"""Train the small vision transformer: ``python -m transformer_compression.vision.train``."""

from __future__ import annotations

from collections.abc import Sequence

from papers_shared.cli import Command, run
from transformer_compression.vision.config import VisionTrainConfig


def learning_rate_factor(step: int, *, steps: int, warmup: float) -> float:
    """Rises over the first ``warmup * steps`` updates, then half a cosine down to 0."""
    import math

    first = max(1, round(warmup * steps))
    if step < first:
        return (step + 1) / first
    return (1 + math.cos(math.pi * (step - first) / max(1, steps - first))) / 2


def train(config: VisionTrainConfig) -> int:
    """Train and say how good the network is; resumes from ``config.output``.

    Raises:
        ValueError: the configuration does not fit itself or an earlier run.
        FileNotFoundError: CIFAR-10 is not here; the message says how to get it.
    """
    from dataclasses import asdict
    from typing import Any

    import torch
    import torch.nn.functional as F

    from papers_shared.checkpoints import load_state_dict, load_strict
    from papers_shared.data.cifar10 import load_cifar10
    from papers_shared.training import Run
    from transformer_compression.vision.data import (
        accuracy,
        augment,
        exact_test_pictures,
        normalise,
    )
    from transformer_compression.vision.vit import build_vit

    if not 0 <= config.whole_epochs <= config.epochs:
        raise ValueError(
            f"--whole-epochs is {config.whole_epochs}, expected 0 to --epochs {config.epochs}"
        )
    sizes = {name: getattr(config, name) for name in ("embed_dim", "depth", "num_heads")}
    apart = ("output", "log_every", "save_every", "data_path")
    session = Run(
        config.output,
        seed=config.seed,
        config={key: value for key, value in asdict(config).items() if key not in apart},
        metadata={name: str(value) for name, value in sizes.items()},
        mixed_precision=config.mixed_precision,
        log_every=config.log_every,
        save_every=config.save_every,
    )
    model = build_vit(**sizes, token_drop=config.token_drop)
    if config.init is not None:
        load_strict(model, load_state_dict(config.init), what=str(config.init))
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups,
        lr=config.lr,
        weight_decay=config.weight_decay,
    )
    data = load_cifar10("train", path=config.data_path)
    images, labels = data.images[: config.limit], data.labels[: config.limit]
    loader = session.loader(range(len(images)), batch_size=config.batch_size)
    steps = config.epochs * loader.steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, steps=steps, warmup=config.warmup)
    )
    test = exact_test_pictures(load_cifar10("test", path=config.data_path), limit=config.test_limit)
    model, optimizer, schedule = session.prepare(model, optimizer, schedule)

    for index in session.steps(loader, steps):
        if session.new_epoch:
            model.train()
            if session.epoch >= config.epochs - config.whole_epochs:
                bare = session.accelerator.unwrap_model(model)
                bare.patch_drop = torch.nn.Identity()
        with session.accumulate():
            where = index.cpu()
            pictures = normalise(augment(images[where])).to(index.device)
            loss = F.cross_entropy(
                model(pictures),
                labels[where].to(index.device),
                label_smoothing=config.smoothing,
            )
            session.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        session.log(loss=loss)
        if session.epoch_done:
            judged = session.accelerator.unwrap_model(model).eval()
            session.record(accuracy=accuracy(judged, test[0][:2000], test[1][:2000]).percent)

    path = session.finish()
    final = accuracy(session.accelerator.unwrap_model(model).eval(), *test)
    print(f"{path}: {final} of the test pictures")
    return 0


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    program = "transformer_compression.vision.train"
    command = Command("train the network", VisionTrainConfig, f"{program}:train")
    return run(program, "Small vision transformers.", {"train": command}, ["train", *argv])


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
