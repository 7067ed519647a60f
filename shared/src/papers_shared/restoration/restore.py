"""The commands that restore photos of any kind: ``upscale``, ``denoise``, ``dejpeg`` and others."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from papers_shared.data.resize import imresize
from papers_shared.images import rgb_to_ycbcr, to_uint8, ycbcr_to_rgb
from papers_shared.inference import (
    Estimate,
    Origin,
    available_memory,
    count_tiles,
    even_tile,
    plan_tile,
    run_tiled,
    upscale_files,
)
from papers_shared.inference.memory import peak_of_call
from papers_shared.inference.photos import HOST_BYTES_PER_SAMPLE, is_deep
from papers_shared.inference.tiles import pad_to_multiple
from papers_shared.restoration.family import RestorationFamily, Restorer
from papers_shared.restoration.prepare import (
    dtype_and_device,
    is_shipped,
    prepared_restorer,
    weights_for,
)
from papers_shared.restoration.restore_commands import EnlargeConfig, RestoreConfig
from papers_shared.restoration.task import Kind

LARGEST_TILE = 512  # larger ones save no more than a tenth of the overlaps' work
PROBE = 32  # side of the picture, about, on which memory and time are measured
# A float32 photo of scale 1 twice, its tiles' strip, 8 bits of result, and writing these
# (measured on 20 million pixels: see the tests).
HOST_BYTES_PER_SAMPLE_8_BITS = 14
# What stands in the names of results that are not larger than their photos.
MARKS = {
    "denoise": "_denoised",
    "real_denoise": "_denoised",
    "dejpeg": "_dejpeg",
    "derain": "_derained",
    "deblur": "_deblurred",
}


@dataclass(frozen=True)
class Cost:
    """Of one tile, by its pixels: ``linear * n + quadratic * n^2``."""

    linear: float
    quadratic: float

    def __call__(self, pixels: int) -> float:
        return self.linear * pixels + self.quadratic * pixels**2

    @classmethod
    def through(cls, n1: int, y1: float, n2: int, y2: float) -> Cost:
        """Through two points, n1 < n2; growth below proportion counts as proportional."""
        quadratic = min(max(0.0, (y2 / n2 - y1 / n1) / (n2 - n1)), y2 / n2**2)
        return cls(y2 / n2 - quadratic * n2, quadratic)


class PhotoRestorer:
    """A network as ``papers_shared.inference.upscale_files`` calls it.

    A network of 3 channels takes a grey photo three times over, and its results are averaged. One
    of 1 channel takes a colour photo's Y (JPEG artifacts, super-resolution; Cb and Cr are kept, or
    enlarged bicubically), or for noise, rain and blur each of R, G and B: these spoil every channel
    alike, and Y would hold less noise than the network is made for.

    Args:
        restorer: on its device.
        tile: side of the tiles in pixels of the photo; None: the largest that fits into memory.
        overlap: of the tiles, at most half a tile; None: the family's.
        batch_size: tiles at once.
        rounded: give 8 bits where the photo has no more; False: floats, which take more memory.

    Raises:
        ValueError: a size is not positive, or the smallest tile does not fit into memory.
    """

    def __init__(
        self,
        restorer: Restorer,
        *,
        tile: int | None = None,
        overlap: int | None = None,
        batch_size: int = 1,
        rounded: bool = True,
    ) -> None:
        if (tile is not None and tile < 1) or (overlap or 0) < 0 or batch_size < 1:
            raise ValueError(
                f"expected tile and batch_size of 1 or more and an overlap of 0 or more, got "
                f"{tile}, {batch_size} and {overlap}"
            )
        self.restorer, self.batch_size, self.rounded = restorer, batch_size, rounded
        self.dtype, self.device = dtype_and_device(restorer)
        self.multiple = restorer.multiple
        if tile is None:
            largest = max(LARGEST_TILE, self.multiple)
            sides = range(self.multiple, largest + 1, self.multiple)
            tile = plan_tile(available_memory(self.device), self.bytes_of_tile, sides)
        self.tile = -(-tile // self.multiple) * self.multiple
        wanted = restorer.family.overlap if overlap is None else overlap
        # Whole multiples, so that a tile's windows are the picture's.
        wanted = -(-wanted // self.multiple) * self.multiple
        self.overlap = min(wanted, self.tile // 2 // self.multiple * self.multiple)

    @property
    def scale(self) -> int:
        """Output pixels an input pixel."""
        return self.restorer.scale

    def __call__(self, image: Tensor, *, seed: int, progress: Callable[[int, int], None]) -> Tensor:
        """(3, H, W) in [0, 1] -> (3, H s, W s) in [0, 1], or uint8; ``seed`` changes nothing."""
        dtype = torch.uint8 if self.rounded and not is_deep(image) else torch.float32
        run = functools.partial(self.restore, progress=progress)
        if torch.equal(image[:2], image[1:]):
            return run(image[:1], dtype=dtype).expand(3, -1, -1)
        if self.restorer.channels == 3:
            return run(image, dtype=dtype)
        if not self._by_luma:
            return run(image[:, None], dtype=dtype)[:, 0]
        ycbcr = rgb_to_ycbcr(image)
        luma = run(ycbcr[:1], dtype=torch.float32)
        chroma = ycbcr[1:] if self.scale == 1 else imresize(ycbcr[1:], self.scale)
        large = ycbcr_to_rgb(torch.cat([luma, chroma]))
        return to_uint8(large) if dtype == torch.uint8 else large.clamp(0, 1)

    def restore(
        self,
        image: Tensor,
        *,
        dtype: torch.dtype = torch.float32,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Pictures through the network, in tiles.

        Args:
            image: (C, H, W) or (B, C, H, W) in [0, 1]; C is the network's, or 1. Sides that are not
                multiples of what the network takes are padded by reflection, as it pads them.
            dtype: of the result: float32, clamped, or uint8.
            progress: called with (tiles done, tiles in all).

        Returns:
            (C, H s, W s), with B in front if ``image`` had it, on the CPU.

        Raises:
            ValueError: the network returned NaN or infinity.
            OutOfMemory: memory does not suffice for the smallest tile.
        """
        height, width = (side * self.scale for side in image.shape[-2:])
        result = run_tiled(
            self._network,
            pad_to_multiple(image, self.multiple),
            scale=self.scale,
            tile=self.tile,
            overlap=self.overlap,
            multiple=self.multiple,
            batch_size=self.batch_size,
            blend="discard",
            dtype=dtype,
            progress=progress,
        )
        result = result[..., :height, :width]
        return result if dtype == torch.uint8 else result.clamp_(0, 1)

    def _network(self, tiles: Tensor, origins: Sequence[Origin]) -> Tensor:
        repeated = tiles.shape[1] < self.restorer.channels
        given = tiles.expand(-1, self.restorer.channels, -1, -1) if repeated else tiles
        made = self.restorer(given.to(self.device, self.dtype)).float()
        return made.mean(1, keepdim=True) if repeated else made

    def bytes_of_tile(self, side: int) -> int:
        """Peak memory of the tiles of one call, extrapolated from two small ones."""
        return self._bytes(side * side)

    def _bytes(self, pixels: int) -> int:
        # On a CPU convolutions also reorder what they take and give.
        copies = 2 if self.device.type == "cpu" else 1
        return int(copies * self.batch_size * self._costs[0](pixels))

    def estimate(self, height: int, width: int) -> Estimate:
        """Tiles, seconds and bytes for a photo."""
        height, width = (-(-side // self.multiple) * self.multiple for side in (height, width))
        rows, columns = (
            even_tile(side, tile=self.tile, overlap=self.overlap, multiple=self.multiple)
            for side in (height, width)
        )
        tiles = count_tiles(height, width, tile=self.tile, overlap=self.overlap)
        if self.restorer.channels == 1 and not self._by_luma:
            tiles *= 3
        per_sample = HOST_BYTES_PER_SAMPLE  # YCbCr is computed in floats
        if self.rounded and not self._by_luma:
            per_sample = HOST_BYTES_PER_SAMPLE_8_BITS
        pixels = rows * columns
        return Estimate(tiles, tiles * pixels * self._costs[1], self._bytes(pixels), per_sample)

    @property
    def _by_luma(self) -> bool:
        """Whether of colour photos Y alone goes through the network."""
        return self.restorer.channels == 1 and self.restorer.task.kind in ("sr", "dejpeg")

    @functools.cached_property
    def _costs(self) -> tuple[Cost, float]:
        """Bytes of a tile by its pixels, and seconds a pixel, measured on this device."""
        small = self.multiple * max(1, round(PROBE / self.multiple))

        def tile_of(side: int) -> Callable[[], float]:
            tile = torch.zeros(1, self.restorer.channels, side, side)
            return lambda: self._network(tile, ()).sum().item()  # waits for the GPU

        first, second = tile_of(small), tile_of(2 * small)
        n1, n2 = small**2, (2 * small) ** 2
        with torch.no_grad():
            memory = Cost.through(
                n1, peak_of_call(first, self.device), n2, peak_of_call(second, self.device)
            )
            times = [time.perf_counter()]
            for _ in range(2):
                second()
                times.append(time.perf_counter())
        # The sooner of two: other processes may have hit one.
        seconds = min(times[1] - times[0], times[2] - times[1])
        return memory, seconds / n2


def run_restore(config: RestoreConfig, family: RestorationFamily, kind: Kind) -> int:
    """Restore photos; the exit status is 1 when one of several failed.

    Args:
        config: the command's options.
        family: whose networks.
        kind: what the command undoes; the weights must be made for it.

    Raises:
        FileNotFoundError: no such photo or weights.
        ValueError: an option does not fit, the weights are made for another task, or there is one
            photo only, and it failed.
    """
    weights = weights_for(family, config.weights, kind)
    restorer = prepared_restorer(config, family, kind)
    if is_shipped(family, weights):
        print(
            f"{family.package}: {weights}, the small network trained here for {restorer.task} "
            f"(see its card); {family.released}",
            flush=True,
        )
    scale = config.scale if isinstance(config, EnlargeConfig) else None
    return upscale_files(
        config.photos,
        config.output,
        PhotoRestorer(
            restorer,
            tile=config.tile,
            overlap=config.overlap,
            batch_size=config.batch_size,
            rounded=scale in (None, restorer.scale),
        ),
        scale=scale,
        mark=MARKS.get(kind),
        recursive=config.recursive,
        overwrite=config.overwrite,
        max_pixels=config.max_pixels,
    ).status
