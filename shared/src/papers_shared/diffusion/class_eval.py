"""Scores of class-conditional networks: their pictures, and how well they find noise."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from papers_shared.data.cifar10 import load_cifar10
from papers_shared.devices import pick_device
from papers_shared.diffusion.adm import Chain, q_sample
from papers_shared.diffusion.class_family import ClassFamily, load_network
from papers_shared.diffusion.class_options import ClassEvalConfig
from papers_shared.diffusion.examples import Examples, load_examples, smaller
from papers_shared.images import list_images, read_image, to_uint8
from papers_shared.metrics.adm import (
    AdmInception,
    Statistics,
    adm_scores,
    read_statistics,
    statistics_of,
)
from papers_shared.metrics.cifar_features import cifar_features, load_cifar_network

Extractor = Callable[[list[Tensor]], Statistics]


@torch.no_grad()
def noise_error(
    model: nn.Module,
    examples: Examples,
    *,
    seed: int = 0,
    first: int = 1000,
    batch_size: int = 50,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Mean squared error of the predicted noise, by example: (n,).

    Step and noise of an example follow from the seed and its place alone, so that networks are
    compared on the same draws.

    Args:
        model: in eval mode, on ``device``.
        examples: held-out ones.
        seed: of steps and noise.
        first: so many.
        batch_size: at a time.
        device: where the network is.
    """
    chain, generator = Chain.linear(), torch.Generator().manual_seed(seed)
    errors = []
    count = min(first, len(examples))
    for start in range(0, count, batch_size):
        pairs = [examples[i] for i in range(start, min(start + batch_size, count))]
        x0, labels = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        draws = [
            (
                torch.randint(len(chain), (), generator=generator),
                torch.randn(x0.shape[1:], generator=generator),
            )
            for _ in pairs
        ]
        t, noise = (torch.stack(parts) for parts in zip(*draws, strict=True))
        x = q_sample(chain, x0, t, noise).contiguous(memory_format=torch.channels_last)
        output = model(x.to(device), t.to(device), labels.to(device)).cpu()
        errors.append((noise - output[:, : x0.shape[1]]).square().mean((1, 2, 3)))
    return torch.cat(errors)


def check_classes(examples: Examples, count: int, names: Sequence[str]) -> None:
    """Examples must have a network's classes: a label of theirs would mean another one.

    Args:
        examples: the data.
        count: classes of the network.
        names: of them, where its file tells them. Numbers, as cached latents have them in place of
            names, are not compared.

    Raises:
        ValueError: another number of classes, or other names.
    """
    own = examples.classes
    if len(own) != count:
        raise ValueError(f"the data have {len(own)} classes, the network {count}")
    numbers = tuple(str(i) for i in range(count))
    if names and numbers not in (own, tuple(names)):
        for label, (ours, theirs) in enumerate(zip(own, names, strict=True)):
            if ours != theirs:
                raise ValueError(
                    f"class {label} of the data is {ours!r}, of the network {theirs!r}; the folder "
                    "needs the names that it was trained on"
                )


def pictures_of(source: Path, *, role: str, side: int | None = None) -> list[Tensor]:
    """Pictures (3, H, W), uint8: of a folder, of ``arr_0`` of an .npz, or CIFAR-10's test set.

    Args:
        source: folder, .npz or 'cifar10'.
        role: what it is, for messages.
        side: CIFAR-10 is brought to it.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: it holds fewer than four pictures.
    """
    if str(source) == "cifar10":
        return list(smaller(load_cifar10("test").images, side or 32))
    if source.suffix == ".npz" and source.is_file():
        with np.load(source) as file:
            if "arr_0" not in file:
                raise ValueError(f"{source} holds {', '.join(file)}, expected pictures in arr_0")
            found = [torch.from_numpy(picture).permute(2, 0, 1) for picture in file["arr_0"]]
    elif source.is_dir():
        files = [path for path in list_images(source) if path.stem != "grid"]
        found = [to_uint8(read_image(path)) for path in files]
    else:
        raise FileNotFoundError(f"--{role} {source}: no such folder or .npz file")
    if len(found) < 4:
        raise ValueError(f"{source} holds {len(found)} pictures; at least 4 are needed")
    return found


def picture_scores(
    samples: Path,
    reference: Path,
    *,
    features: Literal["inception", "cifar10"] = "inception",
    inception: Path | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, float]:
    """ADM's scores of pictures against others, in Inception's or a CIFAR classifier's features.

    Args:
        samples: see ``pictures_of``.
        reference: the same, or ADM's .npz with the statistics of a data set.
        features: 'cifar10': ``cifar_frechet``, ``cifar_precision`` ..., which are not FID.
        inception: FID's Inception weights.
        device: where features are computed.

    Raises:
        ValueError, FileNotFoundError, ImportError: pictures or the Inception network are not there.
    """
    made = pictures_of(samples, role="samples")
    extract: Extractor
    if features == "cifar10":
        network = load_cifar_network(device)
        extract = lambda given: statistics_of(*cifar_features(network, torch.stack(given)))  # noqa: E731
        prefix = "cifar_"
    else:
        extract = AdmInception(weights=inception, device=device)
        prefix = ""
    stored = read_statistics(reference) if features == "inception" else None
    if stored is not None and stored.pool is None and _has_pictures(reference):
        drawn = extract(pictures_of(reference, role="reference"))
        stored = stored.with_features(drawn)
    if stored is None:
        stored = extract(pictures_of(reference, role="reference", side=made[0].shape[-1]))
    scores = adm_scores(extract(made), stored)
    names = {"fid": "frechet"} if prefix else {}
    return {prefix + names.get(name, name): value for name, value in scores.items()}


def _has_pictures(path: Path) -> bool:
    with np.load(path) as file:
        return "arr_0" in file


def evaluate(config: ClassEvalConfig, family: ClassFamily) -> int:
    """Print (and with ``output`` write) the scores.

    Raises:
        ValueError: neither pictures nor weights were given.
    """
    device = pick_device(config.device)
    scores: dict[str, Any] = {}
    if (config.samples is None) != (config.reference is None):
        raise ValueError("--samples and --reference go together")
    if config.samples is None and not config.weights:
        raise ValueError("give --samples and --reference, or --weights")
    if config.samples is not None and config.reference is not None:
        scores |= picture_scores(
            config.samples,
            config.reference,
            features=config.features,
            inception=config.inception,
            device=device,
        )
    if config.weights:
        model, facts = load_network(family, config.weights, variant=config.variant)
        options: Any = model.options
        size = options.input_size
        examples = load_examples(
            config.data,
            split="test",
            data_path=config.data_path,
            image_size=size,
            limit=config.first,
        )
        if (examples.channels, examples.side) != (options.in_channels, size):
            raise ValueError(
                f"{config.data} has {examples.channels}x{examples.side}x{examples.side}, the "
                f"network takes {options.in_channels}x{size}x{size}"
            )
        check_classes(examples, options.num_classes, facts.get("classes", ()))
        errors = noise_error(
            model.to(device),
            examples,
            seed=config.seed,
            first=config.first,
            batch_size=config.batch_size,
            device=device,
        )
        scores["noise_mse"] = errors.mean().item()
    for name, value in scores.items():
        print(f"{name}  {value:.6g}")
    if config.output is not None:
        config.output.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    return 0
