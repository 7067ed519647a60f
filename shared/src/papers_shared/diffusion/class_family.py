"""Class-conditional networks as the commands that several papers share know them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from papers_shared.checkpoints import file_metadata, load_file, unwrap
from papers_shared.workspace import package_folder

AVERAGED = "ema"


@dataclass(frozen=True)
class ClassFamily:
    """What a package says of its class-conditional networks.

    Attributes:
        package: import name; also the key under which a weight file keeps its configuration.
        variants: name -> configuration, a dataclass with ``to_dict``, ``alignment``,
            ``input_size``, ``in_channels``, ``num_classes``.
        build: configuration -> network with fresh weights.
        load_official: (state dict, configuration or mapping) -> network in eval mode.
        merge: network -> a copy with merged feed-forward nets.
        as_model: network -> the same as a diffusers model.
        recognise: state dict -> the variant that it fits, or ''.
        shipped: name of the network that ships, '' for none.
        released: where weights are had, for messages.
        find: name of a released checkpoint -> (file, variant), or None.
    """

    package: str
    variants: Mapping[str, Any]
    build: Callable[[Any], nn.Module]
    load_official: Callable[[Mapping[str, Any], Any], nn.Module]
    merge: Callable[[Any], Any]
    as_model: Callable[[Any], Any]
    recognise: Callable[[Mapping[str, Any]], str]
    shipped: str = ""
    released: str = ""
    find: Callable[[str], tuple[Path, str] | None] = lambda name: None

    def config_of(self, variant: str) -> Any:
        """A variant's configuration.

        Raises:
            ValueError: there is none of that name.
        """
        if variant not in self.variants:
            raise ValueError(f"no variant {variant!r}; known: {', '.join(self.variants)}")
        return self.variants[variant]

    def shipped_file(self, name: str) -> Path:
        """The file of a network that was trained here and ships with the package."""
        return package_folder(self.package) / "weights" / f"{name}.safetensors"

    def file_of(self, weights: str | Path) -> tuple[Path, str]:
        """The file that ``weights`` names, and its variant if the name tells it.

        Raises:
            ValueError: nothing was named, and no network ships.
        """
        if not str(weights):
            if not self.shipped or not self.shipped_file(self.shipped).is_file():
                raise ValueError(
                    f"no network ships in this checkout, give --weights: {self.released}"
                )
            return self.shipped_file(self.shipped), ""
        if (found := self.find(str(weights))) is not None:
            return found
        own = self.shipped_file(str(weights))
        return (own, "") if own.is_file() else (Path(weights), "")


def changed(config: Any, **values: Any) -> Any:
    """A configuration with other values, those left out that are None, '' or not its fields."""
    known = {f.name for f in fields(config)}
    given = {k: v for k, v in values.items() if k in known and v is not None and v != ""}
    return replace(config, **given)


def load_network(
    family: ClassFamily, source: str | Path = "", *, variant: str = ""
) -> tuple[nn.Module, dict[str, Any]]:
    """A network from a file, in eval mode, and what the file says of it.

    Args:
        family: whose networks.
        source: a file in the authors' layout or one that training wrote, a name of a released
            checkpoint or of a network that ships; '': the one that ships.
        variant: which network it is, where neither the file nor its shapes say so.

    Returns:
        network, and ``{"config": ..., "data": "pixels" | "latents"}`` of a file of ours, else {}.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the variant is unknown or missing, or the file does not fit it.
    """
    path, named = family.file_of(source)
    variant = named or variant
    said = file_metadata(path).get(family.package) if path.is_file() else None
    facts: dict[str, Any] = json.loads(said) if said else {}
    content = load_file(path)
    averaged = AVERAGED if isinstance(content.get(AVERAGED), Mapping) else None
    state = {
        name: value.float() if value.is_floating_point() else value
        for name, value in unwrap(content, key=averaged).items()
    }
    if facts:
        return family.load_official(state, facts["config"]), facts
    variant = variant or family.recognise(state)
    if not variant:
        raise ValueError(f"{path}: name its network with --variant ({', '.join(family.variants)})")
    return family.load_official(state, family.config_of(variant)), facts
