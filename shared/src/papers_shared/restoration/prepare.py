"""From a command's options to a network on its device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from papers_shared.checkpoints import file_metadata, load_state_dict
from papers_shared.devices import pick_device
from papers_shared.restoration.family import RestorationFamily, Restorer, load_restorer
from papers_shared.restoration.restore_commands import NetworkConfig
from papers_shared.restoration.task import Kind, Task


def weights_for(family: RestorationFamily, weights: str, kind: Kind | None) -> str:
    """``weights``, or where they are '' the name of those that ship for a kind of task.

    Raises:
        ValueError: none ship for it.
    """
    if weights:
        return weights
    if kind is None and len(set(family.shipped.values())) == 1:
        return next(iter(family.shipped.values()))
    if kind is None or kind not in family.shipped:
        names = ", ".join(f"{name} ({k})" for k, name in family.shipped.items()) or "none"
        raise ValueError(
            f"no weights ship with {family.package} for {kind or 'a task that is not named'}; "
            f"give --weights: a file, or one of the shipped: {names}"
        )
    return family.shipped[kind]


def open_restorer(
    family: RestorationFamily,
    weights: str,
    *,
    variant: str = "",
    kind: Kind | None = None,
    level: float | None = None,
) -> Restorer:
    """The network of a file, its task read off the file: see ``load_restorer``.

    Args:
        family: whose network.
        weights: as ``load_restorer`` takes them, or '': those that ship for ``kind``.
        variant: of a file that does not tell its configuration.
        kind: what the network must undo; None: whatever it is made for.
        level: of a file that does not tell its task.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the weights are made for something else, or do not tell what for.
    """
    weights = weights_for(family, weights, kind)
    path = family.path_of(weights)
    path = path / "model.safetensors" if path.is_dir() else path
    task = None
    if path.is_file() and family.package not in file_metadata(path):
        task = _task_of_unlabelled(family, path, variant=variant, kind=kind, level=level)
    restorer = load_restorer(family, weights, variant=variant, task=task)
    if kind is not None and restorer.task.kind != kind:
        raise ValueError(f"{weights} is made for {restorer.task}; give --weights of one for {kind}")
    return restorer


def _task_of_unlabelled(
    family: RestorationFamily, path: Path, *, variant: str, kind: Kind | None, level: float | None
) -> Task | None:
    """Scale and channels by the tensors' shapes; None: ``load_restorer`` says what is missing."""
    state = {k.replace("_orig_mod.", ""): v for k, v in load_state_dict(path).items()}
    # A class of the user's own may resemble a known network.
    config = None if ":" in variant else family.recognise(state)
    if config is None and variant:
        config = family.variant(variant)
    return None if config is None else task_of(family, config, kind=kind, level=level)


def task_of(
    family: RestorationFamily, config: Any, *, kind: Kind | None, level: float | None = None
) -> Task | None:
    """What a configuration is made for: ``sr`` if it enlarges, else ``kind``; None: not known."""
    for candidate in ("sr", kind):
        for scale in (2, 3, 4) if candidate == "sr" else (1,):
            for channels in (3, 1):
                if candidate is not None and _fits(family, config, candidate, scale, channels):
                    noisy = candidate in ("denoise", "dejpeg")
                    return Task(candidate, scale, channels, level if noisy else None)
    return None


def _fits(family: RestorationFamily, config: Any, kind: Kind, scale: int, channels: int) -> bool:
    """Whether ``for_task`` leaves the configuration as it is."""
    try:
        return family.for_task(config, Task(kind, scale, channels)) == config
    except ValueError:  # a task that the paper's networks do not know
        return False


def prepared_restorer(
    config: NetworkConfig,
    family: RestorationFamily,
    kind: Kind | None = None,
    *,
    level: float | None = None,
) -> Restorer:
    """The network that a command's options name, on its device.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an option does not fit.
    """
    device = pick_device(config.device, precision=config.precision)
    restorer = open_restorer(family, config.weights, variant=config.variant, kind=kind, level=level)
    if config.merge:
        restorer = restorer.merge()
    return restorer.to(device, getattr(torch, config.precision)).requires_grad_(False)


def is_shipped(family: RestorationFamily, weights: str) -> bool:
    """Whether the name means weights that lie in the package."""
    return Path(family.path_of(weights)) != Path(weights)


def dtype_and_device(restorer: Restorer) -> tuple[torch.dtype, torch.device]:
    """Of the network's parameters."""
    parameter = next(restorer.parameters())
    return parameter.dtype, parameter.device
