"""Teachers and students of the paper: EDSR, RCAN and SwinIR, and how any network is named.

Source: dukd sheet 3.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from papers_shared._basicsr import basicsr_module

Implementation = Literal["auto", "basicsr", "own"]
ARCHITECTURES = ("EDSR", "RCAN", "SwinIR")
_MODULES = {"EDSR": "edsr_arch", "RCAN": "rcan_arch", "SwinIR": "swinir_arch"}
WINDOW = 8  # of every SwinIR of the paper; sides of tiles are multiples of it


@dataclass(frozen=True)
class Config:
    """A network.

    Attributes:
        arch: EDSR, RCAN or SwinIR (basicsr's classes), or ``module:Class`` for one of the user's,
            which takes RGB (B, 3, H, W) in [0, 1] and gives it ``upscale`` times as large.
        upscale: of the enlargement; 0 of a user's network: not known before it runs.
        arguments: further ones of the constructor, by basicsr's names.

    Raises:
        ValueError: an unknown architecture or scale.
    """

    arch: str = "EDSR"
    upscale: int = 4
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES and ":" not in self.arch:
            known = ", ".join(ARCHITECTURES)
            raise ValueError(f"no architecture {self.arch!r}; known: {known}, or module:Class")
        if self.upscale not in ((0, 1, 2, 3, 4) if ":" in self.arch else (1, 2, 3, 4)):
            raise ValueError(f"a network enlarges 2, 3 or 4 times, not {self.upscale}")

    @classmethod
    def of(cls, config: Config | Mapping[str, Any]) -> Config:
        """From a mapping: ``arch``, ``upscale`` and the constructor's arguments side by side."""
        if isinstance(config, Config):
            return config
        rest = dict(config)
        if ":" in str(rest.get("arch", "")):
            # Mappings come from files: these must not name code that is then run.
            raise ValueError(f"{rest['arch']} is not one of the paper's networks; name it yourself")
        return cls(rest.pop("arch", "EDSR"), rest.pop("upscale", 4), rest)

    @classmethod
    def parse(cls, text: str, scale: int = 0) -> Config:
        """From what a user types: a variant, ``module:Class`` or ``EDSR(num_feat=16, ...)``.

        Args:
            text: as typed.
            scale: of a network that does not tell it.

        Raises:
            ValueError: none of these, or a network of another scale.
        """
        name, _, inside = text.partition("(")
        if text in VARIANTS:
            config = VARIANTS[text]
        elif ":" in text:
            config = cls(text, scale)
        elif name in ARCHITECTURES and inside.endswith(")"):
            arguments = _keywords(text, inside[:-1])
            config = cls(name, arguments.pop("upscale", scale or 4), arguments)
        else:
            raise ValueError(
                f"no network {text!r}; module:Class, ARCH(argument=value, ...) with ARCH one of "
                f"{', '.join(ARCHITECTURES)}, or one of {', '.join(VARIANTS)}"
            )
        if scale and config.upscale != scale:
            raise ValueError(f"{text} enlarges {config.upscale} times, --scale says {scale}")
        return config

    def to_dict(self) -> dict[str, Any]:
        """For metadata; ``of`` reads it."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in self.arguments.items()}
        return {"arch": self.arch, "upscale": self.upscale, **plain}


def _keywords(text: str, inside: str) -> dict[str, Any]:
    """Arguments as Python writes them; values are literals."""
    try:
        call = ast.parse(f"f({inside})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("arguments have names")
        return {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{text!r}: {error}; expected EDSR(num_feat=16, num_block=4)") from None


def build(
    config: Config | Mapping[str, Any], *, implementation: Implementation = "auto"
) -> nn.Module:
    """The network that a configuration describes, with fresh weights.

    Args:
        config: a ``Config``, or a mapping as ``Config.of`` takes it.
        implementation: of EDSR and RCAN: ``basicsr``; ``own``, which imports in no time; ``auto``:
            basicsr's where it is installed. SwinIR is basicsr's, or spandrel's where that is
            missing; its sides are padded by reflection to multiples of the window.

    Raises:
        ValueError: arguments that the class does not take, or no such module or class.
        ImportError: neither basicsr nor spandrel is there for a SwinIR.
    """
    config = Config.of(config)
    if ":" in config.arch:
        return _users(config)
    arguments = {**config.arguments, "upscale": config.upscale}
    make = _class(config.arch, implementation)
    if config.arch == "SwinIR":
        make = _windowed(make, int(arguments.get("window_size", 7)))
    else:
        arguments = {"num_in_ch": 3, "num_out_ch": 3, **arguments}
    try:
        return make(**arguments)
    except TypeError as error:
        raise ValueError(f"{config.arch} with {arguments}: {error}") from None


def _class(arch: str, implementation: Implementation) -> Any:
    if implementation != "own" or arch == "SwinIR":
        try:
            return getattr(basicsr_module(f"archs.{_MODULES[arch]}"), arch)
        except ImportError as error:
            if implementation == "basicsr":
                raise
            missing = error
        if arch == "SwinIR":
            try:
                return importlib.import_module("spandrel.architectures.SwinIR").SwinIR
            except ImportError as second:
                raise ImportError(f"{missing}; or spandrel: {second}") from None
    return getattr(importlib.import_module("dukd.networks"), arch)


def _users(config: Config) -> nn.Module:
    name, _, attribute = config.arch.partition(":")
    try:
        make = getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{config.arch}: {error}; expected module:Class, importable from this folder"
        ) from None
    try:
        network = make(**config.arguments)
    except TypeError as error:
        raise ValueError(f"{config.arch} with {dict(config.arguments)}: {error}") from None
    if not isinstance(network, nn.Module):
        raise ValueError(f"{config.arch} gives {type(network).__name__}, not a torch module")
    return network


def _windowed(base: Any, window: int) -> Any:
    """A SwinIR class that takes any size: reflected on the right and below, and cropped again.

    Source: basicsr's ``SwinIRModel.test``; JingyunLiang/SwinIR pads inside its forward.
    """

    class SwinIR(base):
        def forward(self, x: Tensor) -> Tensor:
            """(B, 3, H, W) -> (B, 3, s * H, s * W)."""
            height, width = (side * self.upscale for side in x.shape[-2:])
            padded = reflected(x, multiple=window)
            return super().forward(padded)[..., :height, :width]

    return SwinIR


def reflected(x: Tensor, *, multiple: int = 1, minimum: int = 1) -> Tensor:
    """(..., H, W) continued on the right and below to multiples of ``multiple`` >= ``minimum``.

    Mirrored, or where the picture is too small for that, its edge repeated.
    """
    height, width = x.shape[-2:]
    below, right = (
        -(-max(side, minimum) // multiple) * multiple - side for side in (height, width)
    )
    if not below and not right:
        return x
    mode = "reflect" if below < height and right < width else "replicate"
    return F.pad(x, (0, right, 0, below), mode=mode)


# ----------------------------------------------------------------------------- the paper's networks


def _swinir(
    scale: int, *, channels: int, groups: int, size: int = 48, upsampler: str = "pixelshuffle"
) -> Config:
    return Config(
        "SwinIR",
        scale,
        {
            "img_size": size,
            "in_chans": 3,
            "window_size": WINDOW,
            "mlp_ratio": 2,
            "img_range": 1.0,
            "embed_dim": channels,
            "depths": [6] * groups,
            "num_heads": [6] * groups,
            "upsampler": upsampler,
            "resi_connection": "1conv",
        },
    )


def _paper(scale: int) -> dict[str, Config]:
    edsr = {"num_block": 32, "res_scale": 0.1}
    groups = {"num_feat": 64, "num_group": 10, "squeeze_factor": 16}
    return {
        "edsr_teacher": Config("EDSR", scale, {"num_feat": 256, **edsr}),
        "edsr_student": Config("EDSR", scale, {"num_feat": 64, **edsr}),
        "edsr_m": Config("EDSR", scale, {"num_feat": 64, "num_block": 16}),
        "rcan_teacher": Config("RCAN", scale, {**groups, "num_block": 20}),
        "rcan_student": Config("RCAN", scale, {**groups, "num_block": 6}),
        "swinir_teacher": _swinir(scale, channels=180, groups=6),
        # The options say 18 channels at x2; the file's name and the other scales say 60.
        "swinir_student": _swinir(scale, channels=60, groups=4),
        "swinir_light": _swinir(
            scale, channels=60, groups=4, size=64, upsampler="pixelshuffledirect"
        ),
    }


VARIANTS: dict[str, Config] = {
    **{f"{name}_x{s}": config for s in (2, 3, 4) for name, config in _paper(s).items()},
    # Not the paper's: the student of the small-scale experiment, and the one that ships.
    "mini_x2": Config("EDSR", 2, {"num_feat": 16, "num_block": 4}),
}
