"""What a user calls from Python: a classifier from a checkpoint, photos in, classes out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adabin.config import RELEASED
from adabin.data import normalise
from adabin.model import VARIANTS, Config, build
from adabin.official import CHECKPOINTS, load_official, load_released, refuse_other_layers
from papers_shared.checkpoints import file_metadata, load_state_dict
from papers_shared.data.cifar10 import CLASSES
from papers_shared.data.resize import imresize
from papers_shared.devices import pick_device


def variant_config(name: str) -> Config:
    """The entry of ``VARIANTS`` called ``name``.

    Raises:
        ValueError: there is none.
    """
    if name not in VARIANTS:
        raise ValueError(f"no variant {name!r}; known: {', '.join(VARIANTS)}")
    return VARIANTS[name]


def network_metadata(config: Config) -> dict[str, str]:
    """What a safetensors file says of the network it holds."""
    return {"adabin": json.dumps(config.to_dict())}


def load_network(checkpoint: str, *, variant: str = "") -> tuple[nn.Module, Config]:
    """A network in eval mode, from any of the files that exist of one.

    Args:
        checkpoint: ``released``, a file that ``adabin train`` or ``adabin export`` wrote, or one
            in the authors' layout.
        variant: which network it is, where the file does not say so.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the variant is unknown or missing, or the file does not fit it.
    """
    if checkpoint == RELEASED:
        name = variant or next(iter(CHECKPOINTS))
        variant_config(name)
        return load_released(name), VARIANTS[name]
    metadata = file_metadata(checkpoint)
    if "adabin_packed" in metadata:
        from adabin.packed import load_packed

        model = load_packed(checkpoint)
        return model, model.config
    state = load_state_dict(checkpoint)
    if "adabin" in metadata:
        config = Config.of(json.loads(metadata["adabin"]))
    elif variant:
        config = variant_config(variant)
    else:
        config = _guess(state, checkpoint)
    return load_official(state, config), config


def _guess(state: dict[str, Tensor], checkpoint: str) -> Config:
    """The variant whose names and shapes are the state dict's."""
    refuse_other_layers(state)
    shapes = {name: value.shape for name, value in state.items()}
    for config in VARIANTS.values():
        with torch.device("meta"):
            own = build(config).state_dict()
        if shapes == {name: value.shape for name, value in own.items()}:
            return config
    raise ValueError(
        f"{checkpoint} fits none of {', '.join(VARIANTS)}; --variant NAME tells what differs"
    )


@dataclass(frozen=True)
class Prediction:
    label: str
    probability: float


class Classifier:
    """Photos in, class probabilities out.

        classifier = Classifier.from_checkpoint("released")
        classifier(read_image("photo.png"))[0].label

    Args:
        model: takes normalised pictures.
        config: which network it is; CIFAR networks see 32x32 pixels, ImageNet's 224x224.
        device: where to compute.
        classes: names by class id; CIFAR-10's by default, else the ids.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Config,
        *,
        device: torch.device | str = "cpu",
        classes: Sequence[str] | None = None,
    ) -> None:
        self.model = model.to(device).eval()
        self.device = torch.device(device)
        self.imagenet = config.image_size == 224
        if classes is None and config.num_classes == len(CLASSES) and not self.imagenet:
            classes = CLASSES
        self.classes = classes or [f"class {i}" for i in range(config.num_classes)]

    @classmethod
    def from_checkpoint(
        cls, checkpoint: str = RELEASED, *, variant: str = "", device: str = "auto"
    ) -> Classifier:
        """See ``load_network``; ``device`` is ``auto``, ``cpu`` or ``cuda``."""
        model, config = load_network(checkpoint, variant=variant)
        return cls(model, config, device=pick_device(device))

    def prepare(self, image: Tensor) -> Tensor:
        """(3, H, W) in [0, 1], any size -> (1, 3, S, S) normalised.

        The middle square of the picture; the ImageNet networks see its inner 224/256.
        """
        height, width = image.shape[-2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = image[:3, top : top + side, left : left + side]
        size = 256 if self.imagenet else 32
        small = imresize(square, size=(size, size)).clamp(0, 1)
        if self.imagenet:
            small = small[:, 16:240, 16:240]
        return normalise(small)[None]

    @torch.inference_mode()
    def __call__(self, image: Tensor, *, top: int = 5) -> list[Prediction]:
        """The likeliest classes of one picture.

        Args:
            image: (3, H, W), RGB in [0, 1], any size.
            top: how many classes.

        Returns:
            the likeliest first.
        """
        logits = self.model(self.prepare(image).to(self.device))[0]
        probabilities, ids = logits.softmax(0).topk(min(top, len(self.classes)))
        return [
            Prediction(self.classes[i], p)
            for i, p in zip(ids.tolist(), probabilities.tolist(), strict=True)
        ]
