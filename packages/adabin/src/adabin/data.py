"""The pictures AdaBin is trained and tested on, normalised with ImageNet's statistics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Subset

# Used for CIFAR-10 too: the authors normalise both with ImageNet's mean and std.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
Sample = tuple[Tensor, int]


def normalise(images: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """uint8 (..., 3, H, W) or float in [0, 1] -> float32, zero mean and unit variance a channel."""
    if images.dtype == torch.uint8:
        images = images.float() / 255
    shift, scale = (torch.tensor(v, device=images.device)[:, None, None] for v in (mean, std))
    return (images - shift) / scale


def average_down(images: Tensor, size: int) -> Tensor:
    """uint8 (N, 3, H, H) -> uint8 (N, 3, size, size) by the mean of blocks; H a multiple of size.

    Raises:
        ValueError: size does not divide H.
    """
    factor, rest = divmod(images.shape[-1], size)
    if rest:
        raise ValueError(f"image_size {size} does not divide the pictures' {images.shape[-1]}")
    if factor == 1:
        return images
    return F.avg_pool2d(images.float(), factor).round().to(torch.uint8)


class Pictures(Dataset):
    """Pictures in memory with their labels.

    Args:
        images: uint8 (N, 3, H, W).
        labels: int64 (N,).
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return self.images[index], int(self.labels[index])


def flip_and_crop(sample: Sample, generator: torch.Generator) -> Sample:
    """CIFAR's augmentation: horizontal flip, then a random crop after padding by an eighth.

    Args:
        sample: uint8 (3, S, S) and its label.
        generator: of all draws.

    Returns:
        normalised float32 (3, S, S) and the label. Padding is black before normalisation.

    Source: authors' code (flip before crop; padding 4 at 32x32).
    """
    image, label = sample
    size = image.shape[-1]
    margin = size // 8
    if torch.rand((), generator=generator) < 0.5:
        image = image.flip(-1)
    top, left = torch.randint(0, 2 * margin + 1, (2,), generator=generator).tolist()
    image = F.pad(image, (margin,) * 4)[:, top : top + size, left : left + size]
    return normalise(image), label


def normalise_only(sample: Sample, generator: torch.Generator) -> Sample:
    """No augmentation: uint8 (3, S, S) and label -> normalised float32 and label."""
    return normalise(sample[0]), sample[1]


def folder_pictures(folder: Path, *, size: int, classes: int, train: bool) -> Any:
    """A folder of class folders as a data set of normalised pictures (3, S, S) and class ids.

    Args:
        folder: holds one folder a class (ImageNet's train or val folder); ids by sorted name.
        size: S, what the network sees.
        classes: how many the network tells apart.
        train: random resized crop (scale 0.08 to 1) and flip; else the shorter side is resized
            to 256 for S = 224 and to S for others, and the centre cropped.

    Raises:
        FileNotFoundError: the folder does not exist, or a class folder has no pictures.
        ValueError: it holds more or fewer class folders than ``classes``.
    """
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    if not folder.is_dir() or not any(path.is_dir() for path in folder.iterdir()):
        raise FileNotFoundError(
            f"{folder} is no folder of class folders; expected {folder}/CLASS/picture.jpg"
        )
    view = (
        [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
        if train
        else [v2.Resize(256 if size == 224 else size, antialias=True), v2.CenterCrop(size)]
    )
    finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    pictures = ImageFolder(str(folder), transform=v2.Compose([*view, *finish]))
    if len(pictures.classes) != classes:
        raise ValueError(
            f"{folder} holds {len(pictures.classes)} class folders, the network has {classes} "
            "classes; its class ids would not be the network's"
        )
    return pictures


def random_pictures(pictures: Any, count: int | None) -> Any:
    """``count`` pictures of a folder, the same at every call; all of them for None.

    A folder lists class after class, so its first pictures would be of the first classes only.
    """
    if count is None:
        return pictures
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    return Subset(pictures, order[:count].tolist())
