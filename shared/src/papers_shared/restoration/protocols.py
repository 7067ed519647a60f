"""How restoration papers measure: a function a task, from a network and a test set to scores.

    from papers_shared.networks import load
    scores = measure(load("rlfn_x4"), Task("sr", scale=4), "set5")
    scores.means["psnr"], scores.images["baby"]["psnr"], scores.protocols["psnr"]

A network is any callable on (1, C, H, W) in [0, 1]. Pictures go through it whole, one at a time;
means are over the pictures. The figures that the degraded pictures themselves give (``identity``)
tell an error of the protocol from one of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from papers_shared.images import opencv, rgb_to_y, to_uint8
from papers_shared.metrics.restoration import PSNR, PSNRB, SSIM, VolumeSSIM
from papers_shared.restoration.benchmarks import (
    CleanSet,
    First,
    Pair,
    PairedSet,
    SIDDValidation,
    SuperResolutionSet,
)
from papers_shared.restoration.task import Task

Restore = Callable[[Tensor], Tensor]
Metric = PSNR | PSNRB | SSIM | VolumeSSIM
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Scores:
    """What a protocol measured.

    Attributes:
        images: picture -> metric -> value.
        protocols: metric -> how it was computed; belongs beside every number reported.
    """

    images: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    protocols: Mapping[str, str] = field(default_factory=dict)

    @property
    def means(self) -> dict[str, float]:
        """metric -> arithmetic mean over the pictures."""
        return {m: fmean(row[m] for row in self.images.values()) for m in self.protocols}


def identity(x: Tensor) -> Tensor:
    """The network that does nothing: measures the degraded pictures themselves."""
    return x


def super_resolution(
    restore: Restore,
    pairs: Iterable[Pair],
    *,
    scale: int,
    quantize: bool = True,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Scores:
    """PSNR and SSIM on Y, ``scale`` pixels cut on each side.

    Args:
        restore: (1, 3, H, W) -> (1, 3, scale * H, scale * W).
        pairs: a ``SuperResolutionSet``.
        scale: of the enlargement.
        quantize: the output rounded to uint8, as nearly all papers report. False: clamped only,
            everything in double precision, as the training logs of ELAN and LIPT measure (which
            then round the mean upwards).
        device: where the network computes.
        progress: told (done, total, name) after each picture.

    Raises:
        ValueError: no pictures, or the network gives another shape.

    Source: basicsr 1.4.2, ``calculate_psnr`` and ``calculate_ssim``; LIPT's ``train.py``.
    """
    metrics: dict[str, Metric] = {
        "psnr": PSNR(channels="y", crop_border=scale, quantize=quantize, epsilon=0.0),
        "ssim": SSIM(channels="y", crop_border=scale, quantize=quantize),
    }
    keep = to_uint8 if quantize else _double
    return _measure(restore, pairs, metrics, keep=keep, scale=scale, device=device, told=progress)


def gaussian_denoising(
    restore: Restore,
    pictures: Iterable[tuple[str, Tensor]],
    *,
    sigma: float,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Scores:
    """PSNR and SSIM over all channels, after white Gaussian noise; output as uint8.

    The noise starts from the same seed for every picture and is neither clipped nor rounded.

    Args:
        restore: (1, C, H, W) -> the same shape.
        pictures: a ``CleanSet``, in ``rgb`` or ``grey``.
        sigma: standard deviation in levels of 255.
        seed: of numpy's legacy generator; 0 in all papers.
        device: where the network computes.
        progress: told (done, total, name) after each picture.

    Source: Restormer's and KAIR's test scripts.
    """
    pairs = _Degraded(pictures, lambda x: add_gaussian_noise(x, sigma=sigma, seed=seed))
    metrics: dict[str, Metric] = {"psnr": PSNR(), "ssim": SSIM()}
    return _measure(restore, pairs, metrics, keep=to_uint8, device=device, told=progress)


def add_gaussian_noise(picture: Tensor, *, sigma: float, seed: int = 0) -> Tensor:
    """The noisy picture of ``gaussian_denoising``.

    Args:
        picture: (C, H, W) in [0, 1].
        sigma: in levels of 255.
        seed: as after ``np.random.seed(seed)``; drawn in the order (H, W, C).

    Returns:
        float32 (C, H, W), not clipped.
    """
    channels, height, width = picture.shape
    draw = np.random.RandomState(seed).normal(0, sigma / 255, (height, width, channels))
    return (picture.double() + torch.from_numpy(draw).permute(2, 0, 1)).float()


def jpeg_artifacts(
    restore: Restore,
    pictures: Iterable[tuple[str, Tensor]],
    *,
    quality: int,
    channels: int,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Scores:
    """PSNR and SSIM over all channels after OpenCV's JPEG, PSNR-B too of grey; output as uint8.

    Args:
        restore: (1, C, H, W) -> the same shape.
        pictures: a ``CleanSet``: ``luma`` for the grey task, ``rgb`` for the colour task.
        quality: 1 to 100; papers take 10, 20, 30 and 40.
        channels: 1 for the grey task, 3 for the colour task.
        device: where the network computes.
        progress: told (done, total, name) after each picture.

    Raises:
        ValueError: a quality out of range, or pictures with other channels.

    Source: SwinIR's ``main_test_swinir.py``, tasks ``jpeg_car`` and ``color_jpeg_car``.
    """

    def degrade(picture: Tensor) -> Tensor:
        if len(picture) != channels:
            raise ValueError(f"expected pictures of {channels} channels, got {len(picture)}")
        return compress_jpeg(picture, quality)

    metrics: dict[str, Metric] = {"psnr": PSNR(), "ssim": SSIM()}
    if channels == 1:
        metrics["psnrb"] = PSNRB()
    planes = "Y bt601 rounded" if channels == 1 else ""
    pairs = _Degraded(pictures, degrade)
    return _measure(
        restore, pairs, metrics, keep=to_uint8, device=device, told=progress, planes=planes
    )


def compress_jpeg(picture: Tensor, quality: int) -> Tensor:
    """The picture after OpenCV's JPEG.

    Args:
        picture: (C, H, W) in [0, 1], grey or RGB.
        quality: 1 to 100.

    Returns:
        float32 (C, H, W), multiples of 1/255; libjpeg builds may differ by a few levels.

    Raises:
        ValueError: the quality is no whole number from 1 to 100.
    """
    if int(quality) != quality or not 1 <= quality <= 100:
        raise ValueError(f"JPEG quality must be a whole number from 1 to 100, got {quality}")
    cv2 = opencv("JPEG compression as papers do it")
    grey = len(picture) == 1
    array = to_uint8(picture).flip(0).permute(1, 2, 0).contiguous().numpy()  # RGB -> BGR
    data = cv2.imencode(".jpg", array, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])[1]
    decoded = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR)
    out = torch.from_numpy(decoded[..., None] if grey else decoded)
    return out.permute(2, 0, 1).flip(0).float() / 255


def deraining(
    restore: Restore,
    pairs: Iterable[Pair],
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Scores:
    """PSNR and SSIM on MATLAB's Y in whole levels, of the output as uint8; no border.

    Args:
        restore: (1, 3, H, W) -> the same shape.
        pairs: a ``PairedSet``.
        device: where the network computes.
        progress: told (done, total, name) after each picture.

    Source: Restormer's ``evaluate_PSNR_SSIM.m`` of deraining.
    """
    metrics: dict[str, Metric] = {"psnr": PSNR(), "ssim": SSIM()}

    def keep(x: Tensor) -> Tensor:
        return rgb_to_y(to_uint8(x))

    return _measure(
        restore, pairs, metrics, keep=keep, device=device, told=progress, planes="Y bt601 rounded"
    )


def deblurring(
    restore: Restore,
    pairs: Iterable[Pair],
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Scores:
    """PSNR and SSIM in RGB of whole pictures, output as uint8 (GoPro, HIDE).

    Args:
        restore: (1, 3, H, W) -> the same shape.
        pairs: a ``PairedSet``.
        device: where the network computes.
        progress: told (done, total, name) after each picture.

    Returns:
        psnr, ssim (the mean of the channels) and ssim_volume (MATLAB's, which papers print).

    Source: Restormer's ``evaluate_gopro_hide.m``.
    """
    metrics: dict[str, Metric] = {"psnr": PSNR(), "ssim": SSIM(), "ssim_volume": VolumeSSIM()}
    return _measure(restore, pairs, metrics, keep=to_uint8, device=device, told=progress)


def real_denoising(
    restore: Restore,
    pairs: Iterable[Pair],
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Scores:
    """PSNR and SSIM in RGB of the clamped, not rounded output (SIDD).

    Args:
        restore: (1, 3, H, W) -> the same shape.
        pairs: ``SIDDValidation``, or a ``PairedSet``.
        device: where the network computes.
        progress: told (done, total, name) after each picture.

    Returns:
        psnr, ssim (the mean of the channels) and ssim_volume (MATLAB's, which papers print).

    Source: Restormer's ``evaluate_sidd.m``.
    """
    metrics: dict[str, Metric] = {
        "psnr": PSNR(quantize=False, epsilon=0.0),
        "ssim": SSIM(quantize=False),
        "ssim_volume": VolumeSSIM(quantize=False),
    }
    return _measure(restore, pairs, metrics, keep=_double, device=device, told=progress)


def measure(
    restore: Restore,
    task: Task,
    benchmark: str,
    *,
    folder: Path | str | None = None,
    first: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Scores:
    """The scores that papers report of ``task`` on the test set ``benchmark``.

    Args:
        restore: (1, task.channels, H, W) -> (1, task.channels, scale * H, scale * W).
        task: what the network undoes; noise and JPEG with their level.
        benchmark: of ``benchmarks.SETS``, or ``sidd``.
        folder: the user's copy of the set.
        first: only so many pictures, the first; papers take all.
        seed: of the noise; 0 in all papers.
        device: where the network computes.
        progress: told (done, total, name) after each picture.

    Raises:
        FileNotFoundError: the set is not on this machine; says where it is had.
        ValueError: the task has no level, or task and set do not go together.
    """
    rest: dict[str, Any] = {"device": device, "progress": progress}
    if task.kind == "sr":
        pairs = First(SuperResolutionSet(benchmark, task.scale, folder), first)
        return super_resolution(restore, pairs, scale=task.scale, **rest)
    if task.kind in ("denoise", "dejpeg"):
        if task.level is None:
            raise ValueError(f"{task} cannot be measured without a level; name one")
        if task.kind == "denoise":
            mode = "rgb" if task.channels == 3 else "grey"
            clean = First(CleanSet(benchmark, mode, folder), first)
            return gaussian_denoising(restore, clean, sigma=task.level, seed=seed, **rest)
        clean = First(CleanSet(benchmark, "rgb" if task.channels == 3 else "luma", folder), first)
        quality = int(task.level)
        return jpeg_artifacts(restore, clean, quality=quality, channels=task.channels, **rest)
    if task.kind == "real_denoise":
        noisy = SIDDValidation(folder) if benchmark == "sidd" else PairedSet(benchmark, folder)
        return real_denoising(restore, First(noisy, first), **rest)
    protocol = deraining if task.kind == "derain" else deblurring
    return protocol(restore, First(PairedSet(benchmark, folder), first), **rest)


# --------------------------------------------------------------------------------- inside


class _Degraded:
    """Clean pictures, degraded as they are asked for."""

    def __init__(
        self, pictures: Iterable[tuple[str, Tensor]], degrade: Callable[[Tensor], Tensor]
    ) -> None:
        self.pictures, self.degrade = pictures, degrade
        self.total = len(pictures) if isinstance(pictures, Sized) else 0

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Pair]:
        for name, picture in self.pictures:
            yield Pair(name, self.degrade(picture), picture)


def _double(x: Tensor) -> Tensor:
    return x.double().clamp(0, 1)


def _measure(
    restore: Restore,
    pairs: Iterable[Pair],
    metrics: Mapping[str, Metric],
    *,
    keep: Callable[[Tensor], Tensor],
    device: str,
    told: Progress | None,
    scale: int = 1,
    planes: str = "",
) -> Scores:
    """Every metric of every pair, of ``keep(output)`` and ``keep(clean)``.

    ``planes`` is what the protocol calls them; else grey for pictures of one channel.
    """
    images: dict[str, dict[str, float]] = {}
    total = len(pairs) if isinstance(pairs, Sized) else 0
    for name, degraded, target in pairs:
        with torch.inference_mode():
            output = restore(degraded[None].to(device)).cpu()
        expected = (1, len(degraded), *(scale * side for side in degraded.shape[-2:]))
        if tuple(output.shape) != expected:
            raise ValueError(
                f"{name}: the network gave {tuple(output.shape)} for {tuple(degraded.shape)}, "
                f"expected {expected}"
            )
        result, reference = keep(output), keep(target[None])
        images[name] = {m: metric(result, reference).item() for m, metric in metrics.items()}
        if told is not None:
            told(len(images), total, name)
    if not images:
        raise ValueError("there are no pictures to measure")
    planes = planes or ("grey" if len(target) == 1 else "RGB")
    return Scores(images, {m: p.protocol.replace("RGB", planes) for m, p in metrics.items()})
