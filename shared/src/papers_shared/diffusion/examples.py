"""Training pictures and latents with their classes, for class-conditional networks.

Source: u_dit sheet 4.3 (pictures out), 4.4 (crops, cached latents).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from papers_shared.data.cifar10 import CLASSES, load_cifar10
from papers_shared.images import list_images

Kind = Literal["pixels", "latents"]
SHARDS = "latents.json"  # stands beside the files of a folder that write_latents wrote
PUBLISHED = 1_281_168  # files of imagenet_vae_256; its last is a repetition, which is left out


def center_crop(picture: Image.Image, size: int) -> Image.Image:
    """ADM's crop: halved with a box filter while twice too large, then bicubic, then the middle.

    Args:
        picture: RGB, any size.
        size: side of the result.
    """
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    shape = (round(picture.width * scale), round(picture.height * scale))
    picture = picture.resize(shape, Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def to_pictures(decoded: Tensor) -> Tensor:
    """(B, C, H, W) in about [-1, 1] to uint8 (B, H, W, C): 127.5 x + 128, clamped and cut."""
    return (127.5 * decoded + 128).clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)


def to_network(picture: np.ndarray | Tensor) -> Tensor:
    """uint8 (H, W, C) or (C, H, W) tensor to float32 (C, H, W) in [-1, 1]."""
    if isinstance(picture, np.ndarray):
        picture = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
    return picture.float() / 127.5 - 1


@dataclass(frozen=True)
class Examples:
    """What a network is trained on.

    Attributes:
        kind: pixels in [-1, 1], or latents as they are.
        load: place to float32 (C, H, W).
        labels: int64 (N,).
        classes: names.
        side: of a picture or latent.
        channels: of it.
        two: ``load`` gives (2, C, H, W), the example and its mirror image (stored latents).
        vae: the autoencoder of latents, where their folder tells it.
    """

    kind: Kind
    load: Callable[[int], Tensor]
    labels: Tensor
    classes: tuple[str, ...]
    side: int
    channels: int
    two: bool = False
    vae: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        loaded = self.load(index)
        return (loaded[0] if self.two else loaded), self.labels[index]

    def both(self) -> Examples:
        """The same with mirror images beside the examples, for ``one_of_two``."""
        return replace(self, two=False)


def one_of_two(sample: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Of an example and its mirror image (2, C, H, W) one, and its class."""
    pair, label = sample
    return pair[int(torch.randint(len(pair), (), generator=generator))], label


def flip(sample: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A picture, left and right exchanged half of the time, and its class."""
    picture, label = sample
    mirrored = bool(torch.rand((), generator=generator) < 0.5)
    return (picture.flip(-1) if mirrored else picture), label


def load_examples(
    data: str,
    *,
    split: Literal["train", "test"] = "train",
    data_path: Path | None = None,
    image_size: int = 32,
    limit: int | None = None,
) -> Examples:
    """CIFAR-10, a folder of class folders (pictures, or latents as .npy), or cached latents.

    Args:
        data: "cifar10", or a folder. The authors' cached latents are a folder with two sub-folders
            whose names end in ``_features`` and ``_labels``.
        split: of CIFAR-10; a folder is taken as it is.
        data_path: where CIFAR-10 lies, if in no mirror.
        image_size: pictures of folders are cropped to it, CIFAR's reduced by means.
        limit: only this many: of CIFAR-10, which is in no order, the first; of a folder, which is
            in that of its classes, drawn at random, always the same.

    Raises:
        FileNotFoundError: there is no such folder, or CIFAR-10 is nowhere.
        ValueError: the folder holds neither.
    """
    if data == "cifar10":
        images, labels = _cifar10(split, data_path, image_size)
        return Examples(
            "pixels", lambda i: to_network(images[i]), labels[:limit], CLASSES, image_size, 3
        )
    folder = Path(data)
    if not folder.is_dir():
        raise FileNotFoundError(f"{data} is no folder; give 'cifar10' or a folder of class folders")
    if is_sharded(folder):
        return sharded_examples(folder, limit=limit)
    parts = [sorted(folder.glob(f"*{ending}")) for ending in ("_features", "_labels")]
    if all(parts):
        return _cached_latents(parts[0][0], parts[1][0], limit)
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    latents = [sorted(path.glob("*.npy")) for path in classes]
    pictures = [list_images(path) for path in classes] if not any(latents) else []
    files, labels = _listed(latents if any(latents) else pictures, limit)
    if not files:
        raise ValueError(
            f"{data} holds no class folders with pictures or .npy latents, nor *_features and "
            "*_labels"
        )
    names = tuple(path.name for path in classes)
    if any(latents):
        return _latents(files, labels, names)

    def load(i: int) -> Tensor:
        with Image.open(files[i]) as picture:
            return to_network(np.asarray(center_crop(picture.convert("RGB"), image_size)))

    return Examples("pixels", load, labels, names, image_size, 3)


def is_sharded(folder: Path) -> bool:
    """Whether ``latent_shards.write_latents`` wrote (or is writing) a folder."""
    return (folder / SHARDS).is_file()


def sharded_examples(folder: Path, *, limit: int | None = None) -> Examples:
    """Latents that ``latent_shards.write_latents`` wrote.

    Raises:
        ValueError: the folder is not complete.
    """
    facts = json.loads((folder / SHARDS).read_text(encoding="utf-8"))
    count, size = facts["count"], facts["shard"]
    files = [folder / f"{i:05d}.safetensors" for i in range(-(-count // size))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {len(files)} files ({missing[0]} first): the same "
            "`latents` command goes on where it was"
        )
    labels = torch.cat([load_file(file)["labels"] for file in files])
    places = _drawn(len(labels), limit)
    opened: dict[int, Any] = {}

    def load(i: int) -> Tensor:
        number, place = divmod(int(places[i]), size)
        if number not in opened:
            opened[number] = safe_open(files[number], framework="pt").get_slice("latents")
        latents = opened[number][place].float()
        return latents if facts["flip"] else latents[0]

    return Examples(
        "latents",
        load,
        labels[places],
        tuple(facts["classes"]),
        facts["side"],
        facts["channels"],
        two=facts["flip"],
        vae=facts["vae"],
    )


@lru_cache(maxsize=4)
def _cifar10(
    split: Literal["train", "test"], path: Path | None, side: int
) -> tuple[Tensor, Tensor]:
    """Pictures and labels, kept: unpacking them takes seconds."""
    cifar = load_cifar10(split, path=path)
    return smaller(cifar.images, side), cifar.labels


def smaller(images: Tensor, side: int) -> Tensor:
    """CIFAR's (N, 3, 32, 32) by means of squares of pixels, rounded."""
    if side < 1 or 32 % side:
        raise ValueError(f"image_size={side}: CIFAR-10's 32 pixels are reduced to 32, 16 or 8")
    if side == 32:
        return images
    return F.avg_pool2d(images.float(), 32 // side).round().to(torch.uint8)


def _drawn(count: int, limit: int | None) -> Tensor:
    """Places of so many of ``count`` examples, in their order; all without a limit."""
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(count, generator=generator)[:limit].sort().values


def _listed(files: list[list[Path]], limit: int | None) -> tuple[list[Path], Tensor]:
    pairs = [(path, label) for label, paths in enumerate(files) for path in paths]
    pairs = [pairs[i] for i in _drawn(len(pairs), limit)]
    return [path for path, _ in pairs], torch.tensor([label for _, label in pairs])


def _latents(files: list[Path], labels: Tensor, classes: tuple[str, ...]) -> Examples:
    def load(i: int) -> Tensor:
        latent = torch.from_numpy(np.load(files[i])).float()
        return latent[0] if latent.ndim == 4 else latent

    channels, side, _ = load(0).shape
    return Examples("latents", load, labels, classes, side, channels)


def _cached_latents(features: Path, labels: Path, limit: int | None) -> Examples:
    """One file a picture, (1, 4, 32, 32) and (1,), already scaled; in the authors' order."""

    def place(path: Path) -> tuple[Any, ...]:
        numbers = re.fullmatch(r"(\d+)(?:_(?:.*\D)?(\d))?", path.stem)
        if numbers is None:
            raise ValueError(f"{path}: cached latents are called STEP.npy or STEP_RANK.npy")
        return 8 * int(numbers[1]) + int(numbers[2] or 0), path.name

    files = sorted(features.glob("*.npy"), key=place)
    if len(files) == PUBLISHED:
        files = files[:-1]
    files = [files[i] for i in _drawn(len(files), limit)]
    if not files:
        raise ValueError(f"{features} holds no latents (*.npy)")
    if missing := [path.name for path in files if not (labels / path.name).is_file()]:
        raise FileNotFoundError(f"{labels} lacks {missing[0]} and {len(missing) - 1} more")
    classes = torch.tensor([int(np.load(labels / path.name).ravel()[0]) for path in files])
    names = tuple(str(i) for i in range(max(1000, int(classes.max()) + 1)))
    return _latents(files, classes, names)
