"""From a file of weights to a pipeline, the same way for every ResShift-like paper."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from papers_shared.checkpoints import file_metadata, load_state_dict, load_strict
from papers_shared.diffusion import vq
from papers_shared.diffusion.official import Layout
from papers_shared.diffusion.pipeline import ResShiftPipeline
from papers_shared.diffusion.scheduler import ResShiftScheduler
from papers_shared.diffusion.swin_unet import UNetConfig
from papers_shared.diffusion.train_autoencoder import build as build_tiny
from papers_shared.workspace import package_folder

SMALL = "small"


@dataclass(frozen=True)
class Family:
    """What a package says of its networks.

    Attributes:
        package: import name; also the key under which a weight file keeps its configuration.
        pipeline: the pipeline's class.
        model: the network as a diffusers model (``as_diffusers_model``).
        variants: name -> configuration.
        schedulers: variant -> arguments of ``ResShiftScheduler``.
        layout: how its checkpoints are stored.
        released: where the authors' weights are had and how they are used, for messages.
    """

    package: str
    pipeline: type[ResShiftPipeline]
    model: type
    variants: Mapping[str, UNetConfig]
    schedulers: Mapping[str, Mapping[str, Any]]
    layout: Layout
    released: str

    def shipped(self, name: str) -> Path:
        """The file of a network that was trained here and ships with the package."""
        return package_folder(self.package) / "weights" / f"{name}.safetensors"

    def path_of(self, weights: str) -> Path:
        """The file that ``weights`` names: one that ships with the package, or a path."""
        return self.shipped(weights) if self.shipped(weights).is_file() else Path(weights)


def load_autoencoder(name: str) -> Any:
    """An autoencoder in eval mode.

    Args:
        name: ``small`` (trained here), or a file: one that train_autoencoder wrote, or one in the
            authors' layout, whose codebook tells whether it is f4 or the faces' f8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no autoencoder.
    """
    small = package_folder("papers_shared") / "weights" / "autoencoder_f4.safetensors"
    path = small if name == SMALL else Path(name)
    state = load_state_dict(path)
    if (codes := state.get("quantize.embedding.weight")) is not None:
        for config in (vq.F4, vq.F8_FACE):
            if codes.shape == (config["n_embed"], config["embed_dim"]):
                return vq.freeze(vq.load_official(state, config))
        raise ValueError(
            f"{path} has a codebook {tuple(codes.shape)}: neither f4 nor the faces' f8"
        )
    metadata = file_metadata(path)
    if "latent_channels" not in metadata:
        raise ValueError(f"{path} holds no autoencoder that is known here; {name!r} was given")
    model = build_tiny(
        width=int(metadata["width"]),
        latent_channels=int(metadata["latent_channels"]),
        scaling_factor=float(metadata["scaling_factor"]),
    )
    load_strict(model, {k: v.float() for k, v in state.items()}, what=str(path))
    return vq.freeze(model)


def load_pipeline(
    family: Family, weights: str = SMALL, *, variant: str = "", autoencoder: str = ""
) -> ResShiftPipeline:
    """The pipeline of a file of weights, in eval mode, on the CPU in float32.

    Args:
        family: whose networks.
        weights: see ``commands.WEIGHTS_HELP``.
        variant: of a file in the authors' layout; told by its shapes if left out.
        autoencoder: see ``load_autoencoder``; by default the one the weights were trained with.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: weights, variant and autoencoder do not fit each other.
    """
    if (Path(weights) / "model_index.json").is_file():
        if variant or autoencoder:
            raise ValueError(f"{weights} is a whole pipeline; leave out variant and autoencoder")
        return family.pipeline.from_pretrained(weights)
    path = family.shipped(weights) if weights == SMALL else family.path_of(weights)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; {family.released}")
    metadata = file_metadata(path)
    state = {
        # torch.compile leaves its mark inside names too, of the parts that were compiled.
        name.replace("_orig_mod.", ""): value.float() if value.is_floating_point() else value
        for name, value in load_state_dict(path).items()
    }
    if family.package in metadata:
        told = json.loads(metadata[family.package])
        config: UNetConfig = type(next(iter(family.variants.values()))).of(told["network"])
        scheduler = ResShiftScheduler(**told["scheduler"])
        autoencoder = autoencoder or told["autoencoder"]
    else:
        family.layout.refuse_foreign(state)
        variant = variant or family.layout.recognise(state) or ""
        if variant not in family.variants:
            known = ", ".join(family.variants)
            raise ValueError(
                f"no variant {variant!r}; known: {known}"
                if variant
                else f"{path} fits none of {known}; --variant NAME tells what differs"
            )
        config = family.variants[variant]
        scheduler = ResShiftScheduler(**family.schedulers[variant])
    # Before the autoencoder: of another variant, that would be another one too.
    network = family.layout.load(state, config)
    if not autoencoder:
        face = config.in_channels == 8
        file = "ffhq512_vq_f8_dim8_face.pth" if face else "autoencoder_vq_f4.pth"
        raise ValueError(
            f"{path} comes without its autoencoder; give it: --autoencoder {file} "
            "(github.com/zsyOAOA/ResShift, release v2.0; S-Lab License, non-commercial)"
        )
    vae = load_autoencoder(autoencoder)
    if (channels := vae.config.latent_channels) != config.in_channels:
        raise ValueError(
            f"the autoencoder {autoencoder} has {channels} latent channels, the network takes "
            f"{config.in_channels}; it was trained with another autoencoder"
        )
    model = family.model(**config.to_dict())
    model.load_state_dict(network.state_dict())
    return family.pipeline(unet=vq.freeze(model), vae=vae, scheduler=scheduler)


def weights_metadata(
    family: Family, config: UNetConfig, scheduler: ResShiftScheduler, autoencoder: str
) -> dict[str, str]:
    """What a file of weights says of itself."""
    options = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    told = {"network": config.to_dict(), "scheduler": options, "autoencoder": autoencoder}
    return {family.package: json.dumps(told)}
