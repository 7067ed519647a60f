"""From a file of weights to a network that restores pictures, the same way for every paper."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from papers_shared.checkpoints import atomic_path, file_metadata, load_state_dict, save_state_dict
from papers_shared.restoration.task import Task
from papers_shared.workspace import package_folder


@dataclass(frozen=True)
class RestorationFamily:
    """What a package says of its networks.

    Attributes:
        package: import name; also the key under which a weight file keeps its configuration.
        variants: name -> configuration; a configuration's class has ``of(mapping)`` and
            ``to_dict()``.
        build: configuration -> network in training form.
        load_official: (state dict in the authors' layouts, configuration) -> network.
        for_task: (configuration, task) -> the configuration with the task's scale and channels.
        merge: network -> a copy in deployment form, re-parameterised.
        merged: configuration -> the deployment form's.
        recognise: state dict -> configuration, or None; for files that do not say it themselves.
        value_range: what the network calls white: 1 or 255.
        multiple: sides of tiles are multiples of it, in pixels of the input; of networks that do
            not tell their own as ``alignment``.
        overlap: of tiles, in pixels of the input; what a tile's edge spoils.
        shipped: task's kind -> name of the weights that ship with the package.
        released: what there is of the authors' weights, for messages.
    """

    package: str
    variants: Mapping[str, Any]
    build: Callable[[Any], nn.Module]
    load_official: Callable[[Mapping[str, Tensor], Any], nn.Module]
    for_task: Callable[[Any, Task], Any]
    merge: Callable[[nn.Module], nn.Module]
    merged: Callable[[Any], Any]
    recognise: Callable[[Mapping[str, Tensor]], Any]
    value_range: float
    multiple: int
    overlap: int
    shipped: Mapping[str, str]
    released: str

    def variant(self, name: str) -> Any:
        """The configuration called ``name``.

        Raises:
            ValueError: there is none.
        """
        if name not in self.variants:
            raise ValueError(f"no variant {name!r}; known: {', '.join(self.variants)}")
        return self.variants[name]

    def path_of(self, weights: str) -> Path:
        """The file that ``weights`` names: one that ships with the package, or a path."""
        shipped = package_folder(self.package) / "weights" / f"{weights}.safetensors"
        return shipped if shipped.is_file() else Path(weights)


class Restorer(nn.Module):
    """A network with its task: pictures in [0, 1] in, pictures in [0, 1] out.

    Args:
        network: takes and gives ``family.value_range``.
        config: of the network.
        task: what it undoes.
        family: whose network it is.

    Attributes:
        scale: output pixels an input pixel.
        channels: of its pictures.
    """

    def __init__(
        self, network: nn.Module, *, config: Any, task: Task, family: RestorationFamily
    ) -> None:
        super().__init__()
        self.network, self.config, self.task, self.family = network, config, task, family

    @property
    def scale(self) -> int:
        return self.task.scale

    @property
    def channels(self) -> int:
        return self.task.channels

    @property
    def multiple(self) -> int:
        """What the network pads sides to multiples of, in pixels of its input."""
        return getattr(self.network, "alignment", self.family.multiple)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, C, H * scale, W * scale), about [0, 1], not clamped."""
        return self.network(x * self.family.value_range) / self.family.value_range

    def merge(self) -> Restorer:
        """A copy in deployment form; equal to within rounding."""
        network = self.family.merge(self.network)
        config = self.family.merged(self.config)
        return Restorer(network, config=config, task=self.task, family=self.family).eval()

    def save_pretrained(self, folder: Path | str, *, merged: bool = False) -> None:
        """Write ``config.json`` and ``model.safetensors``; ``merged``: the deployment form."""
        folder, source = Path(folder), self.merge() if merged else self
        folder.mkdir(parents=True, exist_ok=True)
        metadata = network_metadata(self.family, source.config, self.task)
        state = {k: v.contiguous() for k, v in source.network.state_dict().items()}
        save_state_dict(state, folder / "model.safetensors", metadata=metadata)
        with atomic_path(folder / "config.json") as temporary:
            told = json.loads(metadata[self.family.package])
            temporary.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def network_metadata(family: RestorationFamily, config: Any, task: Task) -> dict[str, str]:
    """What a file of weights says of itself."""
    return {family.package: json.dumps({"network": config.to_dict(), "task": task.to_dict()})}


def load_restorer(
    family: RestorationFamily, weights: str, *, variant: str = "", task: Task | None = None
) -> Restorer:
    """The network of a file of weights, in eval mode, on the CPU in float32.

    Args:
        family: whose network.
        weights: a name of the shipped ones, a file, or a folder that ``save_pretrained`` wrote.
        variant: of a file that does not tell its configuration; told by its shapes if left out.
        task: of a file that does not tell it; else it must agree.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: weights, variant and task do not fit each other.
    """
    path = family.path_of(weights)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        known = ", ".join(family.shipped.values())
        raise FileNotFoundError(f"no weights at {path}; names: {known}. {family.released}")
    state = {
        # torch.compile leaves its mark inside names.
        name.replace("_orig_mod.", ""): value.float() if value.is_floating_point() else value
        for name, value in load_state_dict(path).items()
    }
    metadata = file_metadata(path)
    if family.package in metadata:
        told = json.loads(metadata[family.package])
        config = type(next(iter(family.variants.values()))).of(told["network"])
        own = Task(**told["task"])
        if task is not None and (task.kind, task.scale) != (own.kind, own.scale):
            raise ValueError(f"{path} is made for {own}, not for {task}")
        task = own
    else:
        config = family.variant(variant) if variant else family.recognise(state)
        if config is None:
            known = ", ".join(family.variants)
            raise ValueError(f"{path} fits no known network; --variant NAME is one of {known}")
        if task is None:
            raise ValueError(f"{path} does not say what it undoes; name the task")
        if variant:
            config = family.for_task(config, task)
    network = family.load_official(state, config).eval()
    return Restorer(network, config=config, task=task, family=family).eval()
