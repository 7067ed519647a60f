"""A small network with a batch norm, and its family, for the tests of restoration's training."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from papers_shared.checkpoints import load_strict
from papers_shared.restoration.family import RestorationFamily


@dataclass(frozen=True)
class ToyConfig:
    """Attributes: width: channels inside; scale, channels: of the pictures."""

    width: int = 8
    scale: int = 1
    channels: int = 3

    @classmethod
    def of(cls, mapping: Mapping[str, Any]) -> ToyConfig:
        return cls(**mapping)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Toy(nn.Module):
    """The nearest neighbour's values + what convolutions make of them; range 0..255."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        c, width = config.channels, config.width
        self.head = nn.Conv2d(c, width, 3, padding=1)
        self.body = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())
        self.tail = nn.Sequential(
            nn.Conv2d(width, c * config.scale**2, 3, padding=1), nn.PixelShuffle(config.scale)
        )
        self.enlarge = nn.Upsample(scale_factor=config.scale, mode="nearest")

    def forward(self, x: Tensor) -> Tensor:
        return self.enlarge(x) + self.tail(self.body(self.head(x)))


def load(state: Mapping[str, Tensor], config: ToyConfig) -> nn.Module:
    model = Toy(config)
    load_strict(model, state)
    return model


FAMILY = RestorationFamily(
    package="papers_shared",
    variants={"toy": ToyConfig(), "wide": ToyConfig(width=12)},
    build=Toy,
    load_official=load,
    for_task=lambda config, task: replace(config, scale=task.scale, channels=task.channels),
    merge=copy.deepcopy,
    merged=lambda config: config,
    recognise=lambda state: None,
    value_range=255.0,
    multiple=4,
    overlap=4,
    shipped={},
    released="the toy's weights are nowhere",
)
