"""The part of an ``upscale`` command that is the same for every network: files in, files out.

A photo is read upright and handed to the network as RGB. Grey files become grey files again (with
alpha: RGBA), more than 8 bits become 16 where the format can, and an alpha channel is enlarged
bicubically and put back. A network that restores photos at their own size has scale 1.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from papers_shared.data.resize import imresize
from papers_shared.images import opencv, read_image, write_image
from papers_shared.inference.colour import ColourMethod, match_colour
from papers_shared.inference.listing import Photo, photo_seed, plan_photos, process_rank
from papers_shared.inference.memory import OutOfMemory, available_memory, is_out_of_memory
from papers_shared.inference.progress import TileProgress, duration
from papers_shared.inference.tiles import Progress

LONG_SECONDS = 60
DEEP_SUFFIXES = (".png", ".tif", ".tiff")
# A float32 picture, and what write_image needs to round and store it (measured: 24).
HOST_BYTES_PER_SAMPLE = 28


@dataclass(frozen=True)
class Estimate:
    """What a photo will take.

    Attributes:
        tiles: calls of the network, were they not batched.
        seconds: None where it is not known.
        bytes: peak memory of the network on its device.
        host_bytes_per_sample: of a colour photo's result with 8 bits, beside that.
    """

    tiles: int
    seconds: float | None
    bytes: int
    host_bytes_per_sample: int = HOST_BYTES_PER_SAMPLE


class Upscaler(Protocol):
    """A network with all around it that takes a whole picture."""

    @property
    def scale(self) -> int:
        """Output pixels an input pixel."""

    def __call__(self, image: Tensor, *, seed: int, progress: Progress) -> Tensor:
        """(3, H, W) in [0, 1] on the CPU -> (3, H * scale, W * scale) on the CPU.

        Floats in [0, 1]; or uint8 where that is all the photo's bits and memory is to be saved.
        """

    def estimate(self, height: int, width: int) -> Estimate:
        """Before the network runs on (3, height, width)."""


@dataclass
class Report:
    """What became of the photos of this process."""

    written: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """The exit status: 1 when a photo failed."""
        return int(bool(self.failed))


def upscale_files(
    inputs: Sequence[Path],
    output: Path | None,
    upscaler: Upscaler,
    *,
    scale: int | None = None,
    seed: int = 0,
    colour: ColourMethod = "none",
    mark: str | None = None,
    suffix: str | None = None,
    recursive: bool = False,
    overwrite: bool = True,
    max_pixels: int | None = None,
) -> Report:
    """Enlarge photos and folders of photos, one file each.

    Of several processes (``torchrun``, ``accelerate launch``) each takes every n-th photo; what
    a photo becomes depends neither on their number nor on the other photos.

    Args:
        inputs: files and folders.
        output: see ``plan_photos``, as are ``mark`` (default: ``_x`` and the scale), ``suffix``
            and ``recursive``.
        upscaler: the network.
        scale: of the files written, if smaller than the network's: results are then reduced by
            antialiased bicubic interpolation.
        seed: of all draws; each photo's own seed is made of it and the photo's name.
        colour: how colours are matched to the photo's, see ``match_colour``.
        overwrite: False: photos whose result is there already are skipped.
        max_pixels: refuse larger results; by default those for which memory does not suffice.

    Returns:
        what was written, skipped and why what failed; failures are printed, too.

    Raises:
        FileNotFoundError: an input does not exist, or a folder holds no image.
        ValueError: options that do not go together; or there is one photo only, and it failed.
    """
    if scale is not None and not 1 <= scale <= upscaler.scale:
        raise ValueError(f"the network enlarges {upscaler.scale} times; scale {scale} is not below")
    scale = scale or upscaler.scale
    mark = f"_x{scale}" if mark is None else mark
    photos = plan_photos(inputs, output, mark=mark, suffix=suffix, recursive=recursive)
    rank, world = process_rank()
    report = Report()
    for photo in photos[rank::world]:
        if not overwrite and photo.target.exists():
            report.skipped.append(photo.path)
            print(f"{photo.path}: {photo.target} is there already")
            continue
        started = time.monotonic()
        try:
            height, width = _upscale(
                photo,
                upscaler,
                scale=scale,
                seed=photo_seed(seed, photo.key),
                colour=colour,
                max_pixels=max_pixels,
                bar=sys.stderr.isatty() and world == 1,
            )
        except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise  # a programming error, not the photo's
            text = _with_path(photo.path, error)
            if len(photos) == 1:
                raise ValueError(text) from error
            report.failed[photo.path] = text
            print(f"failed: {text}", file=sys.stderr, flush=True)
            continue
        report.written.append(photo.target)
        taken = duration(time.monotonic() - started)
        print(f"{photo.path} -> {photo.target} ({width} x {height}, {taken})", flush=True)
    if report.failed:
        count = len(report.failed) + len(report.written) + len(report.skipped)
        print(f"{len(report.failed)} of {count} photos failed:", file=sys.stderr)
        for text in report.failed.values():
            print(f"  {text}", file=sys.stderr)
    return report


def _upscale(
    photo: Photo,
    upscaler: Upscaler,
    *,
    scale: int,
    seed: int,
    colour: ColourMethod,
    max_pixels: int | None,
    bar: bool,
) -> tuple[int, int]:
    """Write the result of one photo; its height and width."""
    stored = _read(photo.path)
    channels, height, width = stored.shape
    has_alpha = channels in (2, 4)
    bits = 16 if is_deep(stored) and photo.target.suffix.lower() in DEEP_SUFFIXES else 8
    _check_target(photo, bits, has_alpha)
    estimate = upscaler.estimate(height, width)
    plain = channels == 3 and bits == 8 and colour == "none" and scale == upscaler.scale
    per_sample = estimate.host_bytes_per_sample if plain else HOST_BYTES_PER_SAMPLE
    large_size = height * upscaler.scale, width * upscaler.scale
    host_bytes = large_size[0] * large_size[1] * (3 + has_alpha) * per_sample
    _check_size(*large_size, host_bytes, max_pixels)
    _announce(photo.path, estimate, height, width, host_bytes)

    rgb = stored[: channels - has_alpha].expand(3, -1, -1).contiguous()
    with TileProgress(photo.path.name, bar=bar) as progress:
        large = upscaler(rgb, seed=seed, progress=progress)
    expected = (3, *large_size)
    if tuple(large.shape) != expected:
        raise ValueError(f"the network made {tuple(large.shape)} of the photo, not {expected}")
    if large.dtype == torch.uint8 and not plain:
        large = large.float() / 255
    if large.is_floating_point() and not torch.isfinite(large).all():
        raise ValueError("the network returned NaN or infinity; try 32-bit precision")
    if not plain:
        large = match_colour(large, rgb, colour)
    size = (height * scale, width * scale)
    if scale != upscaler.scale:
        large = imresize(large, size=size)
    if channels < 3:
        large = torch.einsum("chw,c->hw", large, torch.tensor([0.299, 0.587, 0.114]))[None]
    if has_alpha:
        alpha = imresize(stored[-1:], size=size)
        large = torch.cat([large.expand(3, -1, -1), alpha])
    photo.target.parent.mkdir(parents=True, exist_ok=True)
    write_image(large, photo.target, bits=bits)
    return size


def _read(path: Path) -> Tensor:
    """The photo as stored, upright; what the decoder warns of is printed in one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image = read_image(path, mode="stored", truncated="warn")
    for warning in caught:
        text = " ".join(str(warning.message).split())
        print(f"warning: {text if str(path) in text else f'{path}: {text}'}", file=sys.stderr)
    return image


def is_deep(image: Tensor) -> bool:
    """Whether the values are not all n / 255: the file had more than 8 bits a channel."""
    levels = image * 255
    return bool((levels - levels.round()).abs().max() > 1e-3)


def _check_target(photo: Photo, bits: int, has_alpha: bool) -> None:
    """Refuse before the network runs what could not be written after it."""
    if has_alpha and photo.target.suffix.lower() in (".jpg", ".jpeg"):
        raise ValueError(f"the photo has an alpha channel, {photo.target} cannot; use .png")
    if bits == 16:
        opencv(f"{photo.target} is to have 16 bits a channel")


def _check_size(height: int, width: int, needed: int, max_pixels: int | None) -> None:
    pixels = height * width
    what = f"the result of {width} x {height} pixels needs {needed / 1e9:.2f} GB of memory"
    if max_pixels is not None:
        if pixels > max_pixels:
            raise ValueError(f"{what} and is above --max-pixels {max_pixels}; raise it to go on")
    elif needed > (free := available_memory("cpu")):
        raise OutOfMemory(
            f"{what} and {free / 1e9:.2f} GB are free; give a part of the photo, or "
            f"--max-pixels {pixels} to try all the same"
        )


def _announce(path: Path, estimate: Estimate, height: int, width: int, host_bytes: int) -> None:
    if estimate.seconds is None or estimate.seconds <= LONG_SECONDS:
        return
    print(
        f"{path}: {width} x {height}, {estimate.tiles} tiles, about {duration(estimate.seconds)}; "
        f"memory: {estimate.bytes / 1e9:.1f} GB for the network, {host_bytes / 1e9:.1f} GB for the "
        "picture",
        file=sys.stderr,
        flush=True,
    )


def _with_path(path: Path, error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if str(path) in text else f"{path}: {text}"
