"""Accuracy of a checkpoint: ``python -m adabin.eval --checkpoint released --data cifar10``.

The authors' loader drops the last incomplete batch of 128, so their CIFAR-10 figures count the
first 9,984 of the 10,000 test pictures; both counts are printed.
"""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from adabin.cli import main as command_line

    raise SystemExit(command_line(["eval", *sys.argv[1:]]))

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adabin.config import EvalConfig
from adabin.data import folder_pictures, normalise, random_pictures
from adabin.pipeline import load_network
from papers_shared.checkpoints import atomic_path
from papers_shared.data.cifar10 import Cifar10, load_cifar10
from papers_shared.devices import pick_device

AUTHORS_COUNT = 9984  # 78 batches of 128


@dataclass(frozen=True)
class Accuracy:
    """Right answers out of so many, counted in whole pictures."""

    right: int
    of: int

    @property
    def percent(self) -> float:
        return 100 * self.right / self.of

    def __str__(self) -> str:
        return f"{self.percent:.2f} % ({self.right} of {self.of})"


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    images: Tensor,
    *,
    batch_size: int = 250,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Tensor:
    """Logits of uint8 pictures.

    Args:
        model: in eval mode; its device and dtype are used.
        images: uint8 (N, 3, H, W).
        batch_size: pictures a step.
        progress: called as ``progress(done, total, what)``.

    Returns:
        (N, classes) on the CPU.
    """
    like = next(iter(model.state_dict().values()))
    dtype = like.dtype if like.is_floating_point() else torch.float32
    parts = []
    for i in range(0, len(images), batch_size):
        batch = normalise(images[i : i + batch_size].to(like.device))
        parts.append(model(batch.to(dtype)).cpu())
        progress(min(i + batch_size, len(images)), len(images), "test pictures")
    return torch.cat(parts)


def cifar10_accuracy(logits: Tensor, data: Cifar10) -> dict[str, Accuracy]:
    """Top-1 by protocol: the authors' first 9,984, all pictures, and those stored exactly.

    Args:
        logits: (N, 10) of the first N test pictures.
        data: the test set.
    """
    n = len(logits)
    right = logits.argmax(1) == data.labels[:n]
    masks = {
        f"first {min(n, AUTHORS_COUNT)} (the authors' count)": torch.arange(n) < AUTHORS_COUNT,
        f"all {n}": torch.ones(n, dtype=torch.bool),
        "exact pictures only": data.exact[:n],
    }
    return {name: Accuracy(int(right[mask].sum()), int(mask.sum())) for name, mask in masks.items()}


@torch.inference_mode()
def evaluate_pictures(
    model: nn.Module, pictures: Any, *, batch_size: int, workers: int
) -> dict[str, Accuracy]:
    """Top-1, and top-5 of five classes or more, on a data set of normalised pictures.

    Args:
        model: in eval mode; its device and dtype are used.
        pictures: yields (3, H, W) and class id, for example ``folder_pictures``.
        batch_size: pictures a step.
        workers: processes that decode pictures.
    """
    like = next(model.parameters())
    found, count = [], 0
    for images, labels in DataLoader(pictures, batch_size=batch_size, num_workers=workers):
        logits = model(images.to(like))
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu()
        found.append(best == labels[:, None])
        count += len(labels)
        _show_progress(count, len(pictures), "pictures")
    right = torch.cat(found)
    results = {"top-1": Accuracy(int(right[:, 0].sum()), count)}
    if right.shape[1] == 5:
        results["top-5"] = Accuracy(int(right.sum()), count)
    return results


def _show_progress(done: int, total: int, what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} {what}", end="" if done < total else "\n", file=sys.stderr)


def main(config: EvalConfig) -> int:
    """Print (and with ``output`` write) the accuracy by every protocol that applies."""
    device = pick_device(config.device)
    model, network = load_network(config.checkpoint, variant=config.variant)
    model = model.to(device, getattr(torch, config.dtype)).eval()
    results: dict[str, Accuracy | float]
    if config.data == "cifar10":
        if network.image_size != 32:
            raise ValueError(
                "an ImageNet network needs --data FOLDER with ImageNet's class folders"
            )
        data = load_cifar10("test", path=config.data_path)
        images = data.images[: config.first]
        logits = predict_logits(
            model, images, batch_size=config.batch_size, progress=_show_progress
        )
        results = {**cifar10_accuracy(logits, data)}
        loss = F.cross_entropy(logits[:AUTHORS_COUNT], data.labels[: len(logits)][:AUTHORS_COUNT])
        results["cross entropy, the authors' count"] = round(loss.item(), 5)
    else:
        pictures = folder_pictures(
            Path(config.data), size=network.image_size, classes=network.num_classes, train=False
        )
        accuracies = evaluate_pictures(
            model,
            random_pictures(pictures, config.first),
            batch_size=config.batch_size,
            workers=config.workers,
        )
        results = {**accuracies}
    print(f"{network.arch}, checkpoint {config.checkpoint}, {config.dtype} on {device}")
    for name, value in results.items():
        print(f"  {name}: {value}")
    if config.output is not None:
        plain = {k: vars(v) if isinstance(v, Accuracy) else v for k, v in results.items()}
        with atomic_path(config.output) as temporary:
            temporary.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    return 0
