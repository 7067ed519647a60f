"""CIFAR's ResNet-20 as a convolutional teacher: distillation across architectures."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from papers_shared import assets
from papers_shared.checkpoints import load_state_dict, load_strict

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Block(nn.Module):
    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.widen = channels - inputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.widen:  # option A: every second pixel, missing channels zero on both sides
            half = self.widen // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, self.widen - half))
        return F.relu(out + x)


class ResNet20(nn.Module):
    """(B, 3, 32, 32), normalised with ``MEAN`` and ``STD`` -> logits (B, 10).

    Source: He et al., CVPR 2016, section 4.2; weights of akamaster/pytorch_resnet_cifar10.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        layers = []
        for stage in (1, 2, 3):
            blocks = [_Block(widths[stage - 1], widths[stage], 1 if stage == 1 else 2)]
            blocks += [_Block(widths[stage], widths[stage], 1) for _ in range(2)]
            layers.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = layers
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def load_resnet20(path: Path | None = None) -> ResNet20:
    """The trained network (91.73 % on CIFAR-10), in eval mode.

    Raises:
        FileNotFoundError: the weights are not here; the message says how to get them.
    """
    model = ResNet20()
    file = path or assets.fetch("cifar10_resnet20").path
    # The file is older than batch norm's counters, which evaluation does not read.
    counters = {n: b for n, b in model.named_buffers() if n.endswith("num_batches_tracked")}
    load_strict(model, {**counters, **load_state_dict(file)}, what=str(file))
    return model.eval().requires_grad_(False)
