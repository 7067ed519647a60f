"""Models by name, whatever their kind, and the data that methods look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transformer_compression.core import Data, Domain, Progress, silent

TIMM = "timm:"


@dataclass
class Loaded:
    """A model in eval mode and what belongs to it.

    Attributes:
        model: the network.
        domain: language or vision.
        tokenizer: of a language model.
    """

    model: Any
    domain: Domain
    tokenizer: Any = None


def load_model(name: str, *, device: str | torch.device = "cpu") -> Loaded:
    """A language model or a vision transformer by name.

    Args:
        name: a folder that ``save`` wrote; ``smollm2-135m``, ``stories260k``; a Hugging Face
            folder or name; ``vit_cifar10``, a file that vision.train wrote, or ``timm:NAME``.
        device: where it is put.

    Raises:
        FileNotFoundError: there is no such model; the message says what to do.
        ValueError: a language model that was saved without its tokenizer.
    """
    from transformer_compression import storage
    from transformer_compression.vision.vit import SHIPPED, load_vit

    folder = Path(name)
    if (folder / storage.REPORT).is_file():
        loaded = storage.load(folder)
        if loaded.domain == "language" and loaded.tokenizer is None:
            raise ValueError(f"{name} has no tokenizer: give one to save(..., tokenizer=...)")
    elif name == SHIPPED or folder.suffix == ".safetensors":
        loaded = Loaded(load_vit(name), "vision")
    elif name.startswith(TIMM):
        import timm

        try:
            model = timm.create_model(name.removeprefix(TIMM), pretrained=True)
        except Exception as error:  # the hub raises errors of many kinds
            raise FileNotFoundError(f"{name} could not be had from timm: {error}") from None
        loaded = Loaded(model.eval(), "vision")
    else:
        from papers_shared.language_models import load_language_model

        loaded = Loaded(*_language(load_language_model(name)))
    loaded.model.to(device)
    return loaded


def _language(pair: tuple[Any, Any]) -> tuple[Any, Domain, Any]:
    return pair[0], "language", pair[1]


def language_data(
    loaded: Loaded,
    *,
    text: Path | None = None,
    windows: int,
    length: int,
    seed: int,
    progress: Progress = silent,
) -> Data:
    """Calibration windows of a text; WikiText-2's validation part by default.

    Raises:
        FileNotFoundError: the text is not here.
    """
    from papers_shared.language_models import calibration_windows, tokenize, wikitext2

    content = wikitext2("valid") if text is None else text.read_text(encoding="utf-8")
    tokens = tokenize(loaded.tokenizer, content)
    batches = calibration_windows(tokens, count=windows, length=length, seed=seed)
    device = next(loaded.model.parameters()).device
    return Data([b.to(device) for b in batches], tokenizer=loaded.tokenizer, progress=progress)


def vision_data(
    loaded: Loaded, *, pictures: int, seed: int, batch: int = 32, progress: Progress = silent
) -> Data:
    """Training pictures of CIFAR-10, drawn at random, normalised, with labels; where the model is.

    Raises:
        FileNotFoundError: CIFAR-10 is not here.
        ValueError: a model of other pictures or classes.
    """
    from papers_shared.data.cifar10 import load_cifar10
    from transformer_compression.vision.data import check_fits, normalise

    check_fits(loaded.model)
    train = load_cifar10("train")
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(train.images), generator=draw)[:pictures]
    device = next(loaded.model.parameters()).device
    images: Tensor = normalise(train.images[chosen]).to(device)
    labels = train.labels[chosen].to(device)
    return Data(list(images.split(batch)), list(labels.split(batch)), progress=progress)
