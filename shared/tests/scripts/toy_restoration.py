"""Small networks that restore pictures, and their family, for the tests of restoration."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from papers_shared.checkpoints import save_state_dict
from papers_shared.inference.tiles import pad_to_multiple
from papers_shared.restoration.family import RestorationFamily, network_metadata
from papers_shared.restoration.task import Task

MULTIPLE = 4


@dataclass(frozen=True)
class ToyConfig:
    """``attend``: windows of 4 x 4 pixels attend, and every second block is shifted."""

    scale: int = 1
    colors: int = 3
    width: int = 8
    attend: bool = False
    deploy: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ToyConfig:
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Toy(nn.Module):
    """x (0..255) + what two convolutions (in training three) make of it; then pixel shuffle."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        width, made = config.width, config.colors * config.scale**2
        self.head = nn.Conv2d(config.colors, width, 3, padding=1)
        self.qkv = nn.Conv2d(width, 3 * width, 1) if config.attend else None
        self.point = None if config.deploy else nn.Conv2d(width, width, 1)
        self.tail = nn.Conv2d(width, made, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, MULTIPLE)
        y = self.head(x / 255)
        if self.qkv is not None:
            y = y + self._attention(y)
        y = self.tail(y if self.point is None else self.point(y))
        skip = x.repeat_interleave(self.config.scale**2, 1)
        large = nn.functional.pixel_shuffle(skip + 25.5 * y, self.config.scale)
        return large[..., : height * self.config.scale, : width * self.config.scale]

    def _attention(self, y: Tensor) -> Tensor:
        batch, c, height, width = y.shape
        rows, columns, m = height // MULTIPLE, width // MULTIPLE, MULTIPLE
        y = self.qkv(torch.roll(y, (-2, -2), (-2, -1)))
        y = y.view(batch, 3 * c, rows, m, columns, m).permute(0, 2, 4, 3, 5, 1)
        q, k, v = y.reshape(batch * rows * columns, m * m, 3 * c).chunk(3, -1)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        y = y.view(batch, rows, columns, m, m, c).permute(0, 5, 1, 3, 2, 4)
        return torch.roll(y.reshape(batch, c, height, width), (2, 2), (-2, -1))


def build(config: ToyConfig) -> Toy:
    return Toy(config)


def load_official(state: Mapping[str, Tensor], config: ToyConfig) -> Toy:
    network = Toy(replace(config, deploy="point.weight" not in state))
    network.load_state_dict(dict(state))
    return network


def merge(network: nn.Module) -> Toy:
    """The 1x1 convolution goes into the one after it, whose padding sees its bias."""
    assert isinstance(network, Toy)
    if network.point is None:
        return copy.deepcopy(network)
    state = {k: v for k, v in network.state_dict().items() if not k.startswith("point")}
    tail, point = network.tail.weight, network.point.weight[..., 0, 0]
    state["tail.weight"] = torch.einsum("omhw,mi->oihw", tail, point).detach()
    return load_official(state, network.config)


def recognise(state: Mapping[str, Tensor]) -> ToyConfig | None:
    if "head.weight" not in state:
        return None
    width, colors = state["head.weight"].shape[:2]
    scale = round((len(state["tail.weight"]) / colors) ** 0.5)
    deploy = "point.weight" not in state
    return ToyConfig(scale, colors, width, attend="qkv.weight" in state, deploy=deploy)


FAMILY = RestorationFamily(
    package="papers_shared",
    variants={"toy": ToyConfig(), "attend": ToyConfig(attend=True)},
    build=build,
    load_official=load_official,
    for_task=lambda config, task: replace(config, scale=task.scale, colors=task.channels),
    merge=merge,
    merged=lambda config: replace(config, deploy=True),
    recognise=recognise,
    value_range=255,
    multiple=MULTIPLE,
    overlap=16,
    shipped={},
    released="The toy's weights are nowhere.",
)


def network(config: ToyConfig, *, seed: int = 0, size: float = 1.0) -> Toy:
    """Reproducible weights; biases of the merged convolution are 0, so that merging is exact."""
    generator = torch.Generator().manual_seed(seed)
    made = Toy(config).eval()
    with torch.no_grad():
        for name, value in made.state_dict().items():
            draw = torch.randn(value.shape, generator=generator)
            value.copy_(0 * draw if name == "point.bias" else size * 0.2 * draw)
    return made


def write(path: Path, task: Task, *, labelled: bool = True, **options: Any) -> str:
    """A file of weights for a task; options are ToyConfig's, and ``size`` of the weights."""
    size = options.pop("size", 1.0)
    config = ToyConfig(scale=task.scale, colors=task.channels, **options)
    metadata = network_metadata(FAMILY, config, task) if labelled else None
    path.parent.mkdir(parents=True, exist_ok=True)
    save_state_dict(network(config, size=size).state_dict(), path, metadata=metadata)
    return str(path)
