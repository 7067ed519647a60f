"""Scores of a folder of pictures, with or without a folder of references.

    scores = evaluate_folder("results", "gt", metrics=("psnr", "ssim", "lpips"))
    scores.means["psnr"], scores.images["baboon"]["psnr"], scores.protocols["psnr"]

The protocol is that of the evaluation script that SinSR, TAD-SR and (for PSNR and LPIPS) DiT-SR
share: 8-bit files, whole pictures, one at a time, arithmetic means. They pair files by sorted
position; here by name without suffix, and a file without partner is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from papers_shared.images import list_images, read_image, to_uint8
from papers_shared.metrics import no_reference
from papers_shared.metrics.frechet import Inception, frechet_distance
from papers_shared.metrics.no_reference import NoReference
from papers_shared.metrics.restoration import LPIPS, NIQE, PSNR, SSIM, _gaussian_mean, _same_shape

WITH_REFERENCE = ("psnr", "ssim", "lpips")
WITHOUT_REFERENCE = ("niqe", *get_args(no_reference.Name))
OF_SETS = ("fid",)
METRICS = (*WITH_REFERENCE, *WITHOUT_REFERENCE, *OF_SETS)
LOWER_IS_BETTER = ("lpips", "niqe", "fid")
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class FolderScores:
    """What ``evaluate_folder`` computed.

    Attributes:
        means: metric -> arithmetic mean over the pictures; of ``fid`` the distance of the folders.
        images: picture (name without suffix) -> metric -> value; ``fid`` has none.
        protocols: metric -> how it was computed; belongs beside every number reported.
    """

    means: Mapping[str, float]
    images: Mapping[str, Mapping[str, float]]
    protocols: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class RoundedSSIM(SSIM):
    """SSIM of Y in whole levels, negative contrast terms counted as 0: pyiqa's default.

    Everything else is as in ``SSIM(channels="y")``; on strongly degraded pictures the two differ
    in the fourth decimal.

    Source: tad_sr sheet section 5.
    """

    @property
    def protocol(self) -> str:
        return f"SSIM-Y bt601 rounded crop{self.crop_border} uint8 gaussian11 sigma1.5 nonnegative"

    def __call__(self, image: Tensor, reference: Tensor) -> Tensor:
        """Args: two image batches of one shape, 11 pixels at least. Returns: float64 (B,)."""
        image, reference = _same_shape(image, reference)
        if min(image.shape[-2:]) - 2 * self.crop_border < 11:
            raise ValueError(f"SSIM needs at least 11x11 pixels, got {tuple(image.shape[-2:])}")
        x, y = self._levels(image).round(), self._levels(reference).round()
        mu_x, mu_y, xx, yy, xy = _gaussian_mean(torch.stack([x, y, x * x, y * y, x * y]))
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        luminance = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
        contrast = (2 * (xy - mu_x * mu_y) + c2) / (xx - mu_x**2 + yy - mu_y**2 + c2)
        return (luminance * contrast.clamp_min(0)).mean(dim=(1, 2, 3))


class Scorer:
    """Several metrics of single pictures, each made once.

    Args:
        metrics: names; see ``WITH_REFERENCE`` and ``WITHOUT_REFERENCE``.
        device: of the networks among them.

    Raises:
        ValueError: there is no such metric.
    """

    def __init__(
        self, metrics: Sequence[str] = WITH_REFERENCE, *, device: str | torch.device = "cpu"
    ) -> None:
        for name in metrics:
            if name not in WITH_REFERENCE + WITHOUT_REFERENCE:
                known = ", ".join(WITH_REFERENCE + WITHOUT_REFERENCE)
                raise ValueError(f"unknown metric {name!r} of single pictures; known: {known}")
        self.device = device
        self.metrics: dict[str, Any] = {name: _make(name, device) for name in metrics}

    @property
    def protocols(self) -> dict[str, str]:
        """Metric -> how it is computed."""
        return {name: metric.protocol for name, metric in self.metrics.items()}

    def __call__(self, image: Tensor, reference: Tensor | None = None) -> dict[str, float]:
        """Score one picture.

        Args:
            image: (3, H, W), uint8, or floats in [0, 1], which are rounded to 8 bits.
            reference: of the same shape; needed by the metrics of ``WITH_REFERENCE``.

        Raises:
            ValueError: a metric needs a reference and there is none, or the shapes differ.
        """
        pair = [_to_8_bit(picture) for picture in (image, reference) if picture is not None]
        scores = {}
        for name, metric in self.metrics.items():
            if name in WITH_REFERENCE and reference is None:
                raise ValueError(f"{name} compares with a reference; none was given")
            given = pair if name in WITH_REFERENCE else pair[:1]
            if name == "lpips":
                given = [picture.to(self.device) for picture in given]
            scores[name] = float(metric(*given))
        return scores


def evaluate_folder(
    outputs: Path | str,
    references: Path | str | None = None,
    *,
    metrics: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = lambda done, total, what: None,
) -> FolderScores:
    """Score all pictures of a folder.

    Args:
        outputs: folder of pictures.
        references: folder of pictures with the same names (suffixes may differ) and sizes; where
            ``fid`` is all that needs them, of any names and sizes.
        metrics: out of ``METRICS``; all of ``WITH_REFERENCE`` if there are references, else niqe.
        device: of the networks.
        progress: called as ``progress(done, total, "what")``.

    Raises:
        ValueError: an unknown metric, no references for one that needs them, a picture without
            partner or of another size than it, or two pictures of one name.
        FileNotFoundError: a folder or the weights of a network are missing; says which.
        ImportError: a package that a metric needs is not installed; says which.
    """
    if metrics is None:
        metrics = WITH_REFERENCE if references is not None else ("niqe",)
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
        if references is None and name in WITH_REFERENCE + OF_SETS:
            raise ValueError(f"{name} compares with references; give their folder")
    single = [name for name in metrics if name not in OF_SETS]
    scorer = Scorer(single, device=device)
    inception = Inception(device=device) if "fid" in metrics else None
    protocols = scorer.protocols
    pictures = _by_stem(Path(outputs))
    partners: dict[str, Path] = {}
    if any(name in WITH_REFERENCE for name in metrics):
        assert references is not None  # asked above
        partners = _by_stem(Path(references))
        _check_pairs(pictures, partners)
    images = {}
    for stem, path in pictures.items():
        images[stem] = _score(scorer, path, partners.get(stem)) if single else {}
        progress(len(images), len(pictures), path.name)
    means = {name: sum(i[name] for i in images.values()) / len(images) for name in single}
    if inception is not None:
        assert references is not None  # asked above
        folders = (list(pictures.values()), list_images(references))
        means["fid"] = frechet_distance(*(inception(f, progress=progress) for f in folders))
        protocols["fid"] = inception.protocol
    in_order = {name: means[name] for name in metrics}
    return FolderScores(in_order, images, {name: protocols[name] for name in metrics})


def _make(name: str, device: str | torch.device) -> Any:
    if name == "psnr":
        return PSNR(channels="y", quantize=False)
    if name == "ssim":
        return RoundedSSIM(channels="y")
    if name == "lpips":
        return LPIPS("alex")
    return NIQE() if name == "niqe" else NoReference(name, device=device)  # type: ignore[arg-type]


def _score(scorer: Scorer, path: Path, partner: Path | None) -> dict[str, float]:
    picture = read_image(path)
    reference = None if partner is None else read_image(partner)
    if reference is not None and picture.shape != reference.shape:
        sizes = [f"{p.shape[-1]}x{p.shape[-2]}" for p in (picture, reference)]
        raise ValueError(
            f"{path} is {sizes[0]}, its reference {partner} {sizes[1]} pixels; they have to be "
            "equal"
        )
    try:
        return scorer(picture, reference)
    except ValueError as error:  # too small for a metric
        raise ValueError(f"{path}: {error}") from None


def _to_8_bit(picture: Tensor) -> Tensor:
    """(C, H, W) -> uint8 (1, C, H, W)."""
    return (picture if picture.dtype == torch.uint8 else to_uint8(picture))[None]


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in list_images(folder):
        if path.stem in found:
            raise ValueError(
                f"{found[path.stem]} and {path.name} have one name; pictures are told apart by it"
            )
        found[path.stem] = path
    return found


def _check_pairs(pictures: Mapping[str, Path], partners: Mapping[str, Path]) -> None:
    alone = sorted(pictures.keys() ^ partners.keys())
    if alone:
        path = pictures.get(alone[0]) or partners[alone[0]]
        other = next(iter((partners if alone[0] in pictures else pictures).values())).parent
        raise ValueError(
            f"{path} has no partner {alone[0]}.* in {other} ({len(alone)} pictures without "
            "partner); outputs and references are paired by name"
        )
