"""One interface for every detector: pictures in, probability of "generated" out.

A detector is a network, how a picture becomes its pixels (``Geometry``), how those become its
input (``Pixels``), and which of its outputs means "generated". Labels are the same everywhere:
real (nature) 0, generated (ai) 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from genimage.model import VARIANTS, Config, build
from genimage.official import load_official
from genimage.pictures import Geometry
from genimage.spectrum import log_spectrum
from papers_shared.checkpoints import file_metadata, load_state_dict
from papers_shared.workspace import package_folder

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = Literal["imagenet", "half", "levels_bgr", "spectrum", "spectrum_bgr", "efficientnet"]
SHIPPED = "shipped"
METADATA = "genimage"
_MEAN_STD = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,) * 3, (0.5,) * 3),
    "efficientnet": ((127 / 255,) * 3, (128 / 255,) * 3),
}


def network_input(images: Tensor, pixels: Pixels) -> Tensor:
    """uint8 (B, 3, H, W), RGB -> what a network takes, float32, on the images' device.

    Args:
        images: as ``Geometry`` gives them.
        pixels: ``imagenet``, ``half`` (to [-1, 1]) and ``efficientnet`` normalise; ``levels_bgr``
            are levels 0..255 in the order BGR; ``spectrum`` is Spec's log spectrum.
    """
    if pixels == "levels_bgr":
        return images.flip(1).float()
    if pixels in ("spectrum", "spectrum_bgr"):
        return log_spectrum(images.flip(1) if pixels.endswith("bgr") else images)
    mean, std = (
        255 * torch.tensor(v, device=images.device)[:, None, None] for v in _MEAN_STD[pixels]
    )
    # Convolutions on a CPU take channels_last a good deal faster.
    levels = images.contiguous(memory_format=torch.channels_last).float()
    return levels.sub_(mean).div_(std)


@dataclass(frozen=True)
class Preset:
    """A kind of detector, without weights.

    Attributes:
        config: its network.
        geometry: from a picture to its pixels.
        pixels: from pixels to the network's input.
        generated: which of two outputs means "generated" (one output always does).
    """

    config: Config
    geometry: Geometry
    pixels: Pixels = "imagenet"
    generated: int = 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "network": self.config.to_dict(),
            "geometry": asdict(self.geometry),
            "pixels": self.pixels,
            "generated": self.generated,
        }

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Preset:
        """The opposite of ``to_dict``."""
        config, geometry = Config.of(stored["network"]), Geometry(**stored["geometry"])
        return cls(config, geometry, stored["pixels"], stored["generated"])


_SMALL = Geometry(32)
PRESETS: dict[str, Preset] = {
    "resnet50": Preset(VARIANTS["resnet50"], Geometry(224, 235)),
    "deit_s": Preset(VARIANTS["deit_s"], Geometry(224, 256)),
    "swin_t": Preset(VARIANTS["swin_t"], Geometry(224, 256)),
    "cnnspot": Preset(VARIANTS["cnnspot"], Geometry(224, interpolation="bilinear")),
    "spec": Preset(
        VARIANTS["spec"],
        Geometry(224, 256, interpolation="plain", square=True),
        pixels="spectrum_bgr",
        generated=0,
    ),
    "f3net": Preset(VARIANTS["f3net"], Geometry(299, 333, interpolation="bilinear"), "half"),
    "gramnet": Preset(
        VARIANTS["gramnet"], Geometry(224, 256, interpolation="bilinear"), generated=0
    ),
    "gramnet_author": Preset(
        VARIANTS["gramnet"],
        Geometry(512, 512, interpolation="plain", square=True),
        pixels="levels_bgr",
        generated=0,
    ),
    "mini_resnet": Preset(VARIANTS["mini_resnet"], _SMALL),
    "photo_resnet": Preset(VARIANTS["mini_resnet"], Geometry(32, crops=36)),
    "mini_cnnspot": Preset(VARIANTS["mini_cnnspot"], _SMALL),
    "mini_spec": Preset(VARIANTS["mini_spec"], _SMALL, pixels="spectrum", generated=0),
    "mini_gramnet": Preset(VARIANTS["mini_gramnet"], _SMALL, generated=0),
}


def preset_of(name: str) -> Preset:
    """A preset by name: one of ``PRESETS``, ``timm:MODEL`` or ``probe:MODEL`` (of timm).

    Raises:
        ValueError: there is none.
    """
    if name in PRESETS:
        return PRESETS[name]
    kind, _, model = name.partition(":")
    if kind not in ("timm", "probe") or not model:
        raise ValueError(
            f"no detector {name!r}; known: {', '.join(PRESETS)}, timm:MODEL and probe:MODEL with "
            "a model name of timm"
        )
    import timm

    if not timm.is_model(model):
        raise ValueError(f"timm has no model {model!r}; timm.list_models() names them")
    config = (
        Config("timm", {"model": model, "num_classes": 2})
        if kind == "timm"
        else Config("Probe", {"encoder": model})
    )
    return Preset(config, *_timm_view(model))


def _timm_view(model: str) -> tuple[Geometry, Pixels]:
    """How timm says that a model's pictures are prepared."""
    import timm

    known = timm.get_pretrained_cfg(model, allow_unregistered=True)
    size = known.input_size[-1] if known is not None else 224
    ratio = known.crop_pct if known is not None else 0.875
    interpolation = known.interpolation if known is not None else "bicubic"
    how: Any = interpolation if interpolation in ("bilinear", "bicubic") else "bicubic"
    pixels: Pixels = "half" if known is not None and known.mean[0] == 0.5 else "imagenet"
    if model.startswith("tf_efficientnet_lite"):
        pixels = "efficientnet"
    return Geometry(size, int(size / ratio), interpolation=how), pixels


def two_logits(native: Tensor, preset: Preset) -> Tensor:
    """A network's own output, (B, 1) or (B, 2) -> logits (B, 2) of real and generated."""
    if native.shape[1] == 1:
        return torch.cat([torch.zeros_like(native), native], dim=1)
    return native if preset.generated == 1 else native.flip(1)


class Detector(nn.Module):
    """A network with all that lies between it and a picture.

    Args:
        preset: which.
        network: built from ``preset.config``; fresh weights if left out.
        facts: what is known of its training, shown with verdicts.
    """

    def __init__(
        self,
        preset: Preset,
        network: nn.Module | None = None,
        *,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.preset = preset
        network = build(preset.config) if network is None else network
        self.network = network.to(memory_format=torch.channels_last)
        self.facts = dict(facts or {})

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def preprocess(self, picture: Image) -> Tensor:
        """RGB picture -> uint8 (3, S, S), or (n, 3, S, S) where the geometry takes n crops."""
        return self.preset.geometry(picture)

    def native(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) -> the network's own output, (B, 1) or (B, 2)."""
        out = self.network(network_input(images, self.preset.pixels))
        return out[1] if isinstance(out, tuple) else out

    def margin(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) or (B, n, 3, S, S) -> (B,): the logit of "generated"."""
        if images.ndim == 5:
            return self.margin(images.flatten(0, 1)).unflatten(0, images.shape[:2]).mean(1)
        real, generated = two_logits(self.native(images), self.preset).unbind(1)
        return generated - real

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) or (B, n, 3, S, S) -> (B,): probability of "generated"."""
        return self.margin(images).sigmoid()

    @torch.inference_mode()
    def judge(self, pictures: Sequence[Image]) -> list[float]:
        """Probability that each picture was generated; any sizes."""
        return [self(self.preprocess(picture)[None].to(self.device)).item() for picture in pictures]

    def metadata(self) -> dict[str, str]:
        """What a safetensors file says of the detector it holds."""
        return {METADATA: json.dumps({"preset": self.preset.to_dict(), "facts": self.facts})}


def make_detector(name: str, *, seed: int = 0) -> Detector:
    """A detector with fresh weights, in training mode.

    Args:
        name: as ``preset_of`` takes it.
        seed: of the weights; torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Detector(preset_of(name))


def shipped_file() -> Path:
    """The weights that come with the package."""
    return package_folder("genimage") / "weights" / "shipped.safetensors"


def load_detector(weights: Path | str = SHIPPED, *, detector: str = "") -> Detector:
    """A trained detector, in eval mode.

    Args:
        weights: ``shipped``, a file that ``genimage train`` wrote, or a checkpoint in the layout
            of the detector's authors.
        detector: which preset a file of others is for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not fit, or does not say what it is and ``detector`` is empty.
    """
    path = shipped_file() if str(weights) == SHIPPED else Path(weights)
    stored = file_metadata(path).get(METADATA)
    state = load_state_dict(path)
    if stored:
        content = json.loads(stored)
        preset = Preset.of(content["preset"])
        if detector and preset_of(detector).config != preset.config:
            raise ValueError(f"{path} holds {preset.config.to_dict()}, not {detector}")
        network = load_official(state, preset.config)
        return Detector(preset, network, facts=content["facts"]).eval()
    if not detector:
        raise ValueError(
            f"{path} does not say which detector it is; give --detector, one of "
            f"{', '.join(PRESETS)}"
        )
    preset = preset_of(detector)
    return Detector(preset, load_official(state, preset.config)).eval()


def with_geometry(detector: Detector, geometry: Geometry) -> Detector:
    """The same network behind another geometry."""
    preset = replace(detector.preset, geometry=geometry)
    return Detector(preset, detector.network, facts=detector.facts).train(detector.training)
