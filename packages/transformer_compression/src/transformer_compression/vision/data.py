"""CIFAR-10 for the small vision transformer: normalised batches, crop and flip, accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers_shared.data.cifar10 import Cifar10, load_cifar10

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's training set


def normalise(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 of zero mean and unit variance a channel."""
    shift, scale = (torch.tensor(v, device=images.device)[:, None, None] for v in (MEAN, STD))
    return (images.float() / 255 - shift) / scale


def augment(images: Tensor, generator: torch.Generator | None = None, *, margin: int = 4) -> Tensor:
    """Random crop after padding by ``margin`` black pixels, random horizontal flip.

    Args:
        images: uint8 (B, 3, S, S).
        generator: of all draws; torch's global one if None.
        margin: pixels on each side.

    Returns:
        uint8 (B, 3, S, S).
    """
    count, _, size, _ = images.shape
    padded = F.pad(images, (margin,) * 4)
    top, left = torch.randint(0, 2 * margin + 1, (2, count, 1), generator=generator)
    span = torch.arange(size)
    columns = left + span
    flipped = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns)
    index = torch.arange(count)
    rows = (top + span)[:, :, None]
    return padded[index[:, None, None], :, rows, columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Accuracy:
    """Right answers out of so many."""

    right: int
    of: int

    @property
    def percent(self) -> float:
        return 100 * self.right / self.of

    def __str__(self) -> str:
        return f"{self.percent:.2f} % ({self.right} of {self.of})"


def check_fits(model: Any) -> None:
    """Refuse a timm vision transformer that CIFAR-10 says nothing about.

    Raises:
        ValueError: other pictures than 32 x 32, or other than 10 classes.
    """
    size, classes = tuple(model.patch_embed.img_size), model.num_classes
    if size != (32, 32) or classes != 10:
        raise ValueError(
            f"the model takes pictures of {size[0]} x {size[1]} and knows {classes} classes; the "
            f"pictures here are CIFAR-10's, 32 x 32 and 10 classes: methods that look at pictures, "
            f"and accuracy, need such a model"
        )


def exact_test_pictures(
    data: Cifar10 | None = None, *, limit: int | None = None
) -> tuple[Tensor, Tensor]:
    """The test pictures that are stored exactly (9,980 in the mirror's packing) and their labels.

    Args:
        data: the test split, if it is at hand.
        limit: only the first.

    Returns:
        uint8 (N, 3, 32, 32) and int64 (N,).
    """
    data = data or load_cifar10("test")
    return data.images[data.exact][:limit], data.labels[data.exact][:limit]


@torch.inference_mode()
def accuracy(
    model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 250, bf16: bool = False
) -> Accuracy:
    """Top-1 of a classifier.

    Args:
        model: in eval mode: normalised (B, 3, S, S) -> logits.
        images: uint8 (N, 3, S, S), on any device.
        labels: int64 (N,).
        batch_size: pictures a step.
        bf16: matrix products in bfloat16, twice as fast on CPUs that have it.
    """
    right = 0
    device = next(model.parameters()).device
    for batch, wanted in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = model(normalise(batch.to(device)))
        right += int((logits.argmax(1) == wanted.to(logits.device)).sum())
    return Accuracy(right, len(labels))
