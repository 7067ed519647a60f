"""The pictures AdaBin is trained and tested on, normalised with ImageNet's statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Used for CIFAR-10 too: the authors normalise both with ImageNet's mean and std.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise(images: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """uint8 (..., 3, H, W) or float in [0, 1] -> float32, zero mean and unit variance a channel."""
    if images.dtype == torch.uint8:
        images = images.float() / 255
    shift, scale = (torch.tensor(v, device=images.device)[:, None, None] for v in (mean, std))
    return (images - shift) / scale
