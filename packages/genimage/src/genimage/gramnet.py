"""GramNet: a ResNet-18 with six branches that read textures through Gram matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

GRAM = 32  # channels of every branch


class Scale(nn.Module):
    """One learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same, multiplied."""
        return x * self.scale


def _conv_bn(inputs: int, outputs: int, *, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def gram(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 1, C, C): F F^T / (C H W), F the features as C rows."""
    batch, channels, height, width = features.shape
    flat = features.reshape(batch, channels, height * width)
    return (flat @ flat.transpose(1, 2) / (channels * height * width))[:, None]


class GramNet(nn.Module):
    """Texture-aware detector; the authors' ``resnet18_gram`` for ``widths`` 64 to 512.

    Args:
        trunk: a ResNet of four stages with names as torchvision's (conv1, bn1, layer1..4).
        widths: channels of the four stages.
        num_classes: outputs; the authors' 0 is generated and 1 is real.
        head: width of the hidden layer.

    Source: Liu, Qi, Torr, Global Texture Enhancement for Fake Face Detection in the Wild (2020).
    """

    def __init__(
        self,
        trunk: Any,
        *,
        widths: tuple[int, int, int, int] = (64, 128, 256, 512),
        num_classes: int = 2,
        head: int = 512,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = trunk.conv1, trunk.bn1
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1, self.layer2 = trunk.layer1, trunk.layer2
        self.layer3, self.layer4 = trunk.layer3, trunk.layer4
        self.scale = Scale()
        self.fcnewr = nn.Sequential(
            nn.Linear(widths[3] + 6 * GRAM, head),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(head, num_classes),
        )
        # Inputs of the branches: picture, stem, pooled stem, layers 1 to 3.
        inputs = (3, self.bn1.num_features, self.bn1.num_features, *widths[:3])
        for name, channels in zip(("i", *"01234"), inputs, strict=True):
            interim = "conv_interi_0" if name == "i" else f"conv_inter{name}_0"
            self.add_module(interim, nn.Sequential(*_conv_bn(channels, GRAM)))
        for name in ("i", *"01234"):
            first, second = self._branch(name)
            self.add_module(first, nn.Sequential(*_conv_bn(1, 16, stride=2)))
            self.add_module(second, nn.Sequential(*_conv_bn(16, GRAM, stride=2)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _branch(name: str) -> tuple[str, str]:
        # The authors' names; branch 1 differs from the others.
        return ("g_fc1r", "g_fc2r") if name == "1" else (f"g{name}_fc1", f"g{name}_fc2")

    def texture(self, name: str, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 32): what one branch says of features of any size."""
        interim = "conv_interi_0" if name == "i" else f"conv_inter{name}_0"
        x = gram(self.get_submodule(interim)(features))
        for part in self._branch(name):
            x = self.get_submodule(part)(x)
        return self.scale(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W), as the preset prepares it -> log-probabilities (B, num_classes)."""
        textures = [self.texture("i", x)]
        x = self.relu(self.bn1(self.conv1(x)))
        textures.append(self.texture("0", x))
        x = self.maxpool(x)
        textures.append(self.texture("1", x))
        for number, layer in enumerate((self.layer1, self.layer2, self.layer3), start=2):
            x = layer(x)
            textures.append(self.texture(str(number), x))
        x = self.layer4(x).mean((2, 3))
        return self.fcnewr(torch.cat([x, *textures], dim=1)).log_softmax(1)
