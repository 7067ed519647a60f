"""The networks: CIFAR ResNet-20, ResNet-18 and VGG-Small, ImageNet ResNet-18 and ResNet-34.

(The ImageNet MobileNet stands in ``mobilenet.py``.)

Full precision: the first convolution, the last linear layer, shortcuts with a convolution, all
batch norms and Maxouts. Every other convolution is an ``AdaBinConv2d`` with a shortcut of its own
(Bi-Real Net's shape). Module names are the authors', so their checkpoints load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from adabin.layers import AdaBinConv2d, Form, Maxout, WeightSet
from adabin.mobilenet import ImageNetMobileNet

Arch = Literal[
    "cifar10_resnet20",
    "cifar10_resnet18",
    "cifar10_vgg_small",
    "imagenet_resnet",
    "imagenet_mobilenet",
]


@dataclass(frozen=True)
class Config:
    """A network, in the argument names of the recordings.

    Attributes:
        arch: which of the five families.
        num_blocks: blocks per stage of the CIFAR ResNets.
        layers: blocks per stage of the ImageNet ResNets.
        num_classes: size of the output.
        deep_stem: three 3x3 convolutions in place of the 7x7 one (ImageNet; not used for the
            reported numbers).
        avg_down: average pooling before the shortcut's 1x1 convolution (ImageNet).
        a_bit, w_bit: 1, or 32 to leave that side in full precision. Both 32 is the float twin.
        form: the activation set of the released code, or as the paper writes it.
        weight_set, adaptive, nonlinearity: the parts that the ablation takes away.
    """

    arch: Arch = "cifar10_resnet20"
    num_blocks: tuple[int, ...] = (3, 3, 3)
    layers: tuple[int, ...] = (2, 2, 2, 2)
    num_classes: int = 10
    deep_stem: bool = False
    avg_down: bool = True
    a_bit: int = 1
    w_bit: int = 1
    form: Form = "code"
    weight_set: WeightSet = "equalised"
    adaptive: bool = True
    nonlinearity: Literal["maxout", "hardtanh"] = "maxout"

    @property
    def layer_options(self) -> dict[str, Any]:
        """What every binary convolution of the network is made with."""
        names = ("a_bit", "w_bit", "form", "weight_set", "adaptive")
        return {name: getattr(self, name) for name in names}

    @property
    def image_size(self) -> int:
        """Side of the pictures that the network is trained and tested on."""
        return 224 if self.arch.startswith("imagenet") else 32

    @classmethod
    def of(cls, config: Config | Mapping[str, Any]) -> Config:
        """From a mapping; lists become tuples.

        Raises:
            ValueError: a key or the architecture is unknown.
        """
        if isinstance(config, Config):
            return config
        known = [f.name for f in fields(cls)]
        if unknown := [key for key in config if key not in known]:
            raise ValueError(f"unknown network option {unknown[0]!r}; known: {', '.join(known)}")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in config.items()
        }
        made = cls(**values)
        if made.arch not in ARCHITECTURES:
            raise ValueError(f"no architecture {made.arch!r}; known: {', '.join(ARCHITECTURES)}")
        return made

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping that ``of`` reads back."""
        return asdict(self)


def _binary_conv(config: Config, inputs: int, outputs: int, stride: int = 1) -> AdaBinConv2d:
    return AdaBinConv2d(
        inputs,
        outputs,
        3,
        stride=stride,
        padding=1,
        **config.layer_options,
    )


def _nonlinearity(config: Config, channels: int) -> nn.Module:
    return Maxout(channels) if config.nonlinearity == "maxout" else nn.Hardtanh()


def subsample_and_pad(x: Tensor, channels: int) -> Tensor:
    """Shortcut without parameters: every second row and column, channels filled up with zeros.

    Args:
        x: (B, C, H, W).
        channels: C' = 2C; (C' - C) / 2 zero channels go before and after.

    Returns:
        (B, C', ceil(H/2), ceil(W/2)).
    """
    fill = (channels - x.shape[1]) // 2
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, fill, fill))


class BasicBlock(nn.Module):
    """Two binary convolutions, each with batch norm, a shortcut and a nonlinearity.

    ``y = nonlinear1(bn1(conv1(x)) + skip(x))``; ``z = nonlinear2(bn2(conv2(y)) + y)``.
    Subclasses say what the first shortcut is; here it holds no parameters.
    """

    def __init__(self, config: Config, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _binary_conv(config, inputs, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.nonlinear1 = _nonlinearity(config, channels)
        self.conv2 = _binary_conv(config, channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.nonlinear2 = _nonlinearity(config, channels)
        self.changes_shape = stride != 1 or inputs != channels

    def skip(self, x: Tensor) -> Tensor:
        """The input in the shape of the first convolution's output."""
        return subsample_and_pad(x, self.conv1.out_channels) if self.changes_shape else x

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        x = self.nonlinear1(self.bn1(self.conv1(x)) + self.skip(x))
        return self.nonlinear2(self.bn2(self.conv2(x)) + x)


class ConvShortcutBlock(BasicBlock):
    """CIFAR ResNet-18's block: the shortcut is a full-precision 1x1 convolution and BN."""

    def __init__(self, config: Config, inputs: int, channels: int, stride: int) -> None:
        super().__init__(config, inputs, channels, stride)
        self.shortcut = nn.Sequential()
        if self.changes_shape:
            self.shortcut.append(nn.Conv2d(inputs, channels, 1, stride=stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))

    def skip(self, x: Tensor) -> Tensor:
        return self.shortcut(x)


class DownsampleBlock(BasicBlock):
    """ImageNet's block: average pooling, then a full-precision 1x1 convolution and BN."""

    def __init__(self, config: Config, inputs: int, channels: int, stride: int) -> None:
        super().__init__(config, inputs, channels, stride)
        if self.changes_shape:
            pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
            conv_stride = 1 if config.avg_down else stride
            self.downsample = nn.Sequential(
                *([pool] if config.avg_down else []),
                nn.Conv2d(inputs, channels, 1, stride=conv_stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def skip(self, x: Tensor) -> Tensor:
        return self.downsample(x) if self.changes_shape else x


def _stages(
    block: type[BasicBlock], config: Config, depths: Sequence[int], widths: Sequence[int]
) -> list[nn.Sequential]:
    """The stages of a ResNet; the first keeps the resolution, each later one halves it."""
    if len(depths) != len(widths):
        raise ValueError(f"{len(widths)} stages need as many depths, got {list(depths)}")
    stages: list[nn.Sequential] = []
    inputs = widths[0]
    for depth, width in zip(depths, widths, strict=True):
        stride = 2 if stages else 1
        first = block(config, inputs, width, stride)
        rest = [block(config, width, width, 1) for _ in range(depth - 1)]
        stages.append(nn.Sequential(first, *rest))
        inputs = width
    return stages


def _global_average(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C)."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


class CifarResNet20(nn.Module):
    """The network of the released checkpoint: 16, 32, 64 channels, shortcuts without parameters.

    Source: authors' code, ``resnet20_1w1a``; 271,262 parameters, 267,264 of them binary.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.nonlinear1 = _nonlinearity(config, 16)
        self.layer1, self.layer2, self.layer3 = _stages(
            BasicBlock, config, config.num_blocks, (16, 32, 64)
        )
        self.bn2 = nn.BatchNorm1d(64)
        self.linear = nn.Linear(64, config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W), normalised with ImageNet's mean and std -> logits (B, classes)."""
        x = self.nonlinear1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.bn2(_global_average(x)))


class CifarResNet18(nn.Module):
    """64 to 512 channels in four stages, shortcuts with 1x1 convolutions.

    Source: authors' code, ``cifar10/resnet18_1w1a``; 11,182,826 parameters.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.nonlinear1 = _nonlinearity(config, 64)
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(
            ConvShortcutBlock, config, config.num_blocks, (64, 128, 256, 512)
        )
        self.linear = nn.Linear(512, config.num_classes)
        self.bn2 = nn.BatchNorm1d(512)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W), normalised with ImageNet's mean and std -> logits (B, classes)."""
        x = self.nonlinear1(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(self.bn2(_global_average(x)))


class CifarVGGSmall(nn.Module):
    """Six convolutions, the first in full precision, max pooling after every second; 32x32 input.

    Source: ours, after the network that the compared methods use; the authors' code has none.
    """

    widths = (128, 128, 256, 256, 512, 512)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        inputs = 3
        for i, width in enumerate(self.widths):
            conv = (
                _binary_conv(config, inputs, width)
                if i
                else nn.Conv2d(inputs, width, 3, padding=1, bias=False)
            )
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(width))
            self.add_module(f"nonlinear{i}", _nonlinearity(config, width))
            inputs = width
        self.fc = nn.Linear(512 * 4 * 4, config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 32, 32), normalised with ImageNet's mean and std -> logits (B, classes)."""
        if x.shape[-2:] != (32, 32):
            raise ValueError(f"VGG-Small takes 32x32 pictures, got {tuple(x.shape[-2:])}")
        for i in range(len(self.widths)):
            x = self.get_submodule(f"conv{i}")(x)
            if i % 2:
                x = F.max_pool2d(x, 2)
            x = self.get_submodule(f"nonlinear{i}")(self.get_submodule(f"bn{i}")(x))
        return self.fc(x.flatten(1))


class ImageNetResNet(nn.Module):
    """ResNet-18 and ResNet-34 for 224x224 pictures.

    ``nonlinear2`` and ``bn3`` are in the authors' state dict and never used; they are kept so
    that checkpoints load strictly.

    Source: authors' code, ``imagenet/resnet18_1w1a``, ``resnet34_1w1a``.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.conv1: nn.Module = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        if config.deep_stem:
            self.conv1 = nn.Sequential(
                nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(32),
                _nonlinearity(config, 32),
                nn.Conv2d(32, 32, 3, padding=1, bias=False),
                nn.BatchNorm2d(32),
                _nonlinearity(config, 32),
                nn.Conv2d(32, 64, 3, padding=1, bias=False),
            )
        self.bn1 = nn.BatchNorm2d(64)
        self.nonlinear1 = _nonlinearity(config, 64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(
            DownsampleBlock, config, config.layers, (64, 128, 256, 512)
        )
        self.bn2 = nn.BatchNorm1d(512)
        self.nonlinear2 = _nonlinearity(config, 512)
        self.fc = nn.Linear(512, config.num_classes)
        self.bn3 = nn.BatchNorm1d(config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W), normalised with ImageNet's mean and std -> logits (B, classes)."""
        x = self.maxpool(self.nonlinear1(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.bn2(_global_average(x)))


ARCHITECTURES: dict[str, type[nn.Module]] = {
    "cifar10_resnet20": CifarResNet20,
    "cifar10_resnet18": CifarResNet18,
    "cifar10_vgg_small": CifarVGGSmall,
    "imagenet_resnet": ImageNetResNet,
    "imagenet_mobilenet": ImageNetMobileNet,
}

VARIANTS: dict[str, Config] = {
    "cifar10_resnet20": Config(),
    "cifar10_resnet18": Config("cifar10_resnet18", num_blocks=(2, 2, 2, 2)),
    "cifar10_vgg_small": Config("cifar10_vgg_small"),
    "imagenet_resnet18": Config("imagenet_resnet", num_classes=1000),
    "imagenet_resnet34": Config("imagenet_resnet", layers=(3, 4, 6, 3), num_classes=1000),
    "imagenet_mobilenet": Config("imagenet_mobilenet", num_classes=1000),
}


def build(config: Config | Mapping[str, Any]) -> nn.Module:
    """A network with fresh weights, initialised as the authors do.

    Args:
        config: a ``Config``, a mapping of its fields, or an entry of ``VARIANTS``.

    Raises:
        ValueError: an unknown key or architecture, or depths that do not fit the stages.
    """
    config = Config.of(config)
    return ARCHITECTURES[config.arch](config)
