"""What a restoration network is asked to undo. No torch: commands name tasks in their help."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Kind = Literal["sr", "denoise", "dejpeg", "derain", "deblur", "real_denoise"]


@dataclass(frozen=True)
class Task:
    """A degradation.

    Attributes:
        kind: ``sr`` (bicubic reduction, MATLAB's), ``denoise`` (white Gaussian noise), ``dejpeg``,
            ``derain``, ``deblur``, ``real_denoise`` (pairs of files).
        scale: output pixels an input pixel; 1 but for ``sr``.
        channels: 3 for RGB, 1 for grey (``dejpeg``: luma).
        level: standard deviation of the noise in levels of 255, or the JPEG quality; None
            where the kind has no level, or a network was made for many.

    Raises:
        ValueError: the values do not go together.
    """

    kind: Kind = "sr"
    scale: int = 1
    channels: int = 3
    level: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"no task {self.kind!r}; known: {', '.join(get_args(Kind))}")
        if (self.scale > 1) != (self.kind == "sr") or not 1 <= self.scale <= 4:
            raise ValueError(
                f"{self.kind} with scale {self.scale}: sr enlarges 2, 3 or 4 times, all else once"
            )
        if self.channels not in (1, 3):
            raise ValueError(f"a picture has 1 or 3 channels, not {self.channels}")
        if self.level is not None and self.kind not in ("denoise", "dejpeg"):
            raise ValueError(f"{self.kind} has no level; {self.level} was given")
        if self.level is not None and self.kind == "dejpeg" and not 1 <= self.level <= 100:
            raise ValueError(f"JPEG quality is 1 to 100, not {self.level}")
        if self.level is not None and self.kind == "denoise" and not 0 < self.level <= 255:
            raise ValueError(f"the noise's deviation is 0 to 255 levels, not {self.level}")

    def __str__(self) -> str:
        grey = "grey " if self.channels == 1 else ""
        level = "" if self.level is None else f"{self.level:g}"
        return {
            "sr": f"{grey}x{self.scale} super-resolution",
            "denoise": f"{grey or 'colour '}denoising, sigma {level or 'unknown'}",
            "dejpeg": f"{grey}JPEG artifact reduction, quality {level or 'unknown'}",
            "derain": f"{grey}deraining",
            "deblur": f"{grey}deblurring",
            "real_denoise": f"{grey}real denoising",
        }[self.kind]

    def to_dict(self) -> dict[str, Any]:
        """For metadata; ``Task(**...)`` reads it."""
        return asdict(self)
