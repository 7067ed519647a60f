"""The detectors' networks, by class and options; ResNets and transformers are timm's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

CLASSES = ("timm", "CNNSpot", "Spec", "GramNet", "F3Net", "SwinTransformer", "Probe")
_SWIN = "swin_tiny_patch4_window7_224"


@dataclass(frozen=True)
class Config:
    """Which network.

    Attributes:
        class_name: one of ``CLASSES``.
        options: its arguments, as the recordings name them; ``timm`` ones hold ``model`` and
            whatever timm's constructor takes.
    """

    class_name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config | Mapping[str, Any]) -> Config:
        """From a Config, ``{class, config}``, ``{class, **options}`` or options that tell it.

        Raises:
            ValueError: the class is unknown, or nothing tells it.
        """
        if isinstance(config, Config):
            return config
        options = dict(config)
        name = options.pop("class", None)
        if set(options) == {"config"}:
            options = dict(options["config"])
        name = name or _class_of(options)
        if name not in CLASSES:
            raise ValueError(
                f"no detector class {name!r}; give class: one of {', '.join(CLASSES)} beside the "
                "options"
            )
        return cls(name, options)

    def to_dict(self) -> dict[str, Any]:
        """``{class, config}``, as JSON holds it and ``of`` reads it."""
        return {"class": self.class_name, "config": dict(self.options)}


def _class_of(options: Mapping[str, Any]) -> str | None:
    """The class that options without one belong to."""
    arch = options.get("arch", "")
    if arch == "resnet18_gram":
        return "GramNet"
    if "LFS_M" in options or "img_width" in options:
        return "F3Net"
    if arch == "resnet50" and options.get("num_classes") == 1:
        return "CNNSpot"
    if arch == "resnet34":
        return "Spec"
    if "window_size" in options and "model" not in options:
        return "SwinTransformer"
    if "encoder" in options:
        return "Probe"
    return "timm" if "model" in options else None


# For 32 pixels: the first convolutions keep the full size, since a stride there loses the traces
# (with ResNet-50's own stem, accuracy on the small benchmark stayed near chance).
_MINI_RESNET = {
    "channels": [16, 32, 48, 64],
    "layers": [1, 1, 1, 1],
    "stem_type": "deep",
    "stem_width": 8,
    "stem_stride": 1,
}
# The paper's seven detectors, and the same ideas for pictures of 32 pixels (mini_*).
VARIANTS: dict[str, Config] = {
    "resnet50": Config("timm", {"model": "resnet50", "num_classes": 2}),
    "deit_s": Config(
        "timm", {"model": "deit_small_patch16_224", "num_classes": 2, "drop_path_rate": 0.1}
    ),
    "swin_t": Config("timm", {"model": _SWIN, "num_classes": 2, "drop_path_rate": 0.2}),
    "cnnspot": Config("CNNSpot", {"arch": "resnet50", "num_classes": 1}),
    "spec": Config("Spec", {"arch": "resnet34", "num_classes": 2}),
    "f3net": Config(
        "F3Net",
        {
            "num_classes": 2,
            "img_width": 299,
            "img_height": 299,
            "LFS_window_size": 10,
            "LFS_M": 6,
        },
    ),
    "gramnet": Config("GramNet", {"arch": "resnet18_gram"}),
    "mini_resnet": Config("timm", {"model": "resnet18", "num_classes": 2, **_MINI_RESNET}),
    "mini_cnnspot": Config("CNNSpot", {"arch": "resnet18", "num_classes": 1, **_MINI_RESNET}),
    "mini_spec": Config("Spec", {"arch": "resnet18", "num_classes": 2, **_MINI_RESNET}),
    "mini_gramnet": Config(
        "GramNet", {"arch": "resnet18_gram", "head": 128, **_MINI_RESNET, "stem_stride": 2}
    ),
}


def build(config: Config | Mapping[str, Any]) -> nn.Module:
    """The network that ``config`` describes, with fresh weights (torch's global generator).

    Raises:
        ValueError: the class is unknown or an option does not fit it.
    """
    config = Config.of(config)
    options = dict(config.options)
    if config.class_name == "F3Net":
        from genimage.f3net import F3Net

        return F3Net(**options)
    if config.class_name == "GramNet":
        return _gramnet(options)
    if config.class_name == "Probe":
        return Probe(**options)
    if config.class_name == "SwinTransformer":
        return _timm({"model": _SWIN, **options})
    if config.class_name in ("CNNSpot", "Spec"):
        options["model"] = options.pop("arch", {"CNNSpot": "resnet50"}.get(config.class_name))
    network = _timm(options)
    if config.class_name == "CNNSpot":
        nn.init.normal_(network.fc.weight, std=0.02)
    return network


def _timm(options: Mapping[str, Any]) -> Any:
    """A model of timm; ``stem_stride`` is of a ResNet's first convolution (stem_type deep)."""
    import timm

    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    stride = options.pop("stem_stride", None)
    model = options.pop("model", None)
    if not isinstance(model, str) or not timm.is_model(model):
        raise ValueError(f"timm has no model {model!r}; timm.list_models() names them")
    try:
        network: Any = timm.create_model(model, **options)
    except TypeError as error:
        raise ValueError(f"timm's {model} does not take these options: {error}") from None
    if stride is not None:
        network.conv1[0].stride = (stride, stride)
    return network


def _gramnet(options: dict[str, Any]) -> nn.Module:
    from genimage.gramnet import GramNet

    arch = options.pop("arch", "resnet18_gram")
    if arch != "resnet18_gram":
        raise ValueError(f"GramNet has arch resnet18_gram, not {arch!r}")
    own = {k: options.pop(k) for k in ("num_classes", "head") if k in options}
    trunk = _timm({"model": "resnet18", **options})
    widths = tuple(options.get("channels", (64, 128, 256, 512)))
    return GramNet(trunk, widths=widths, **own)


class Probe(nn.Module):
    """A frozen encoder of timm and one linear layer.

    Args:
        encoder: a model name of timm.
        pretrained: let timm download its weights (fresh ones otherwise, to be loaded).

    Source: UnivFD (Ojha et al., CVPR 2023), which uses CLIP's encoder so.
    """

    def __init__(self, encoder: str, *, pretrained: bool = False) -> None:
        super().__init__()
        self.encoder = _timm({"model": encoder, "num_classes": 0, "pretrained": pretrained})
        self.encoder.requires_grad_(False)
        self.head = nn.Linear(self.encoder.num_features, 1)

    def train(self, mode: bool = True) -> Probe:
        """The encoder stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W), normalised for the encoder -> logit (B, 1)."""
        return self.head(self.encoder(x))
