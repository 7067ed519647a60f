"""Features of a classifier of CIFAR-10, where FID's Inception network cannot be had or says little.

A distance in these features is **not** FID and is comparable with itself alone.

Source: akamaster/pytorch_resnet_cifar10, ResNet-20 (91.73 % of CIFAR-10's test pictures), BSD-2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers_shared import assets
from papers_shared.checkpoints import load_state_dict, load_strict, unwrap

ASSET = "cifar10_resnet20"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PROTOCOL = "64 pooled features of ResNet-20 (CIFAR-10, 91.73 %), pictures bilinear to 32x32"


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        skip = x[:, :, :: self.stride, :: self.stride]
        return (y + F.pad(skip, (0, 0, 0, 0, self.more, self.more))).relu()


class CifarResNet20(nn.Module):
    """ResNet-20 of CIFAR-10 with parameter-free shortcuts; ``features`` are its pooled 64."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(_Block(i, o, s), _Block(o, o, 1), _Block(o, o, 1))
            for i, o, s in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        )
        self.linear = nn.Linear(64, 10)

    def features(self, pictures: Tensor) -> Tensor:
        """uint8 or float 0 .. 255 (B, 3, H, W) to (B, 64)."""
        x = pictures.float() / 255
        if x.shape[-2:] != (32, 32):
            x = F.interpolate(x, size=(32, 32), mode="bilinear", align_corners=False)
        mean, std = (x.new_tensor(v)[:, None, None] for v in (MEAN, STD))
        x = self.bn1(self.conv1((x - mean) / std)).relu()
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))

    def forward(self, pictures: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to logits (B, 10)."""
        return self.linear(self.features(pictures))


def load_cifar_network(device: str | torch.device = "cpu") -> CifarResNet20:
    """The released network in eval mode, its file found by name and verified by checksum.

    Raises:
        FileNotFoundError: the file is nowhere; the message says how to get it.
    """
    network = CifarResNet20()
    state = unwrap(load_state_dict(assets.fetch(ASSET).path))
    counters = {n: v for n, v in network.state_dict().items() if n.endswith("_tracked")}
    load_strict(network, {**counters, **state}, what=ASSET)  # it was saved by an older torch
    return network.to(device).eval().requires_grad_(False)


@torch.no_grad()
def cifar_features(
    network: CifarResNet20, pictures: Tensor, *, batch_size: int = 250
) -> tuple[Tensor, Tensor]:
    """Features (N, 64) and class probabilities (N, 10) of uint8 pictures (N, 3, H, W)."""
    device = next(network.parameters()).device
    found = [network.features(part.to(device)) for part in pictures.split(batch_size)]
    features = torch.cat(found)
    return features.cpu(), network.linear(features).softmax(1).cpu()
