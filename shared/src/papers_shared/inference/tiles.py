"""A network over a picture of any size: overlapping tiles, blended.

Every tile has the same size, so tiles go through the network in batches. The weights of a tile are
a product of one ramp a side, and starts form a grid: normalising each side's ramps once makes the
weights of all tiles add up to 1 at every pixel. Only a strip of the output, as wide as the
picture's shorter side and as high as the tiles under work, is held in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from papers_shared.images import to_uint8
from papers_shared.inference.memory import OutOfMemory, is_out_of_memory, release_memory

Blend = Literal["feather", "average", "discard"]
Progress = Callable[[int, int], None]


class Origin(NamedTuple):
    """Where a tile lies: the picture's index in the batch, and its first row and column."""

    image: int
    top: int
    left: int


TileFunction = Callable[[Tensor, Sequence[Origin]], Tensor]


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the tiles along a side: every ``tile - overlap``, the last shifted to fit.

    Raises:
        ValueError: the overlap is not less than the tile, or a length is not positive.
    """
    if length < 1 or not 0 <= overlap < tile:
        raise ValueError(
            f"expected a length of 1 or more and 0 <= overlap < tile, got length {length}, "
            f"tile {tile}, overlap {overlap}"
        )
    steps = max(0, math.ceil((length - tile) / (tile - overlap)))
    return [*(i * (tile - overlap) for i in range(steps)), max(0, length - tile)]


def even_tile(length: int, *, tile: int, overlap: int, multiple: int = 1) -> int:
    """The smallest side of a tile that covers a length with as many tiles as ``tile`` does.

    Args:
        length: of the side, in pixels; padded to a multiple if it is not longer than ``tile``.
        tile: the longest side allowed, a multiple of ``multiple``.
        overlap: of neighbouring tiles, at least.
        multiple: what the result is a multiple of.
    """
    count = len(tile_starts(length, tile, overlap))
    share = math.ceil((length + (count - 1) * overlap) / count)
    return min(tile, math.ceil(share / multiple) * multiple)


def count_tiles(height: int, width: int, *, tile: int, overlap: int) -> int:
    """How many tiles ``run_tiled`` makes of a picture."""
    return len(tile_starts(height, tile, overlap)) * len(tile_starts(width, tile, overlap))


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Pad (..., C, H, W) right and bottom until both sides are multiples.

    Sides are mirrored (edge pixel not repeated) where they are longer than the padding, else the
    edge pixel is repeated.
    """
    batch = image.reshape(-1, *image.shape[-3:])
    for axis in (-1, -2):
        side = image.shape[axis]
        pad = -side % multiple
        widths = (0, pad, 0, 0) if axis == -1 else (0, 0, 0, pad)
        if pad:
            batch = F.pad(batch, widths, mode="reflect" if pad < side else "replicate")
    return batch.reshape(*image.shape[:-3], *batch.shape[1:])


@torch.no_grad()
def run_tiled(
    fn: TileFunction,
    image: Tensor,
    *,
    scale: int,
    tile: int,
    overlap: int,
    multiple: int = 1,
    batch_size: int = 1,
    blend: Blend = "feather",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> Tensor:
    """Apply ``fn`` to overlapping tiles and blend the results; no gradients.

    A side not longer than ``tile`` is not cut but padded (``pad_to_multiple``) and cropped back.
    A batch for which memory does not suffice is repeated tile by tile, then in tiles of half the
    side, down to ``multiple``; the smaller sizes are kept for the rest of the picture.

    Args:
        fn: (N, C, h, w) tiles on the picture's device, and their N origins -> (N, C', h * scale,
            w * scale) on any device. It may be called again for the same tiles, so draws belong
            to the origin.
        image: picture or latent (C, H, W) or (B, C, H, W), any value range.
        scale: output pixels an input pixel.
        tile: longest side of a tile, a multiple of ``multiple``; sides are as short as cover the
            picture with the same number of tiles.
        overlap: of neighbouring tiles in input pixels; more where the last was shifted.
        multiple: what the sides of the tiles must be multiples of.
        batch_size: tiles in a call.
        blend: ``feather``: raised-cosine ramps over the overlaps; ``average``: equal weights;
            ``discard``: each tile's outer quarter of an overlap is not used, and the ramps lie
            between: for networks whose results near a tile's edge are not theirs elsewhere.
        dtype: of the output: floating point, or uint8 (``to_uint8`` of values in [0, 1]).
        progress: called with (tiles done, tiles in all).

    Returns:
        (C', H * scale, W * scale), with B in front if the input had it, on the CPU.

    Raises:
        ValueError: sizes that do not go together, ``fn`` returned another shape, NaN or infinity.
        OutOfMemory: even the smallest tile failed.
    """
    if tile < 1 or multiple < 1 or tile % multiple or scale < 1 or batch_size < 1:
        raise ValueError(
            f"expected positive sizes and a tile that is a multiple of {multiple}, got tile "
            f"{tile}, scale {scale}, batch_size {batch_size}"
        )
    if dtype != torch.uint8 and not dtype.is_floating_point:
        raise ValueError(f"the output is uint8 or floating point, not {dtype}")
    if blend not in get_args(Blend):
        raise ValueError(f"unknown blend {blend!r}; expected {', '.join(get_args(Blend))}")
    if image.ndim not in (3, 4) or 0 in image.shape:
        raise ValueError(f"expected (C, H, W) or (B, C, H, W), got {tuple(image.shape)}")
    batch = image if image.ndim == 4 else image[None]
    height, width = batch.shape[-2:]
    batch = _pad_short_sides(batch, tile, multiple)
    runner = _Runner(fn, scale, multiple, batch_size, blend, overlap / tile)
    out = runner.tiled(batch, tile, overlap, dtype=dtype, progress=progress)
    out = out[..., : height * scale, : width * scale]
    return out if image.ndim == 4 else out[0]


def _pad_short_sides(batch: Tensor, tile: int, multiple: int) -> Tensor:
    """Pad the sides that one tile covers; longer ones are covered by shifting the last tile."""
    padded = pad_to_multiple(batch, multiple)
    height, width = batch.shape[-2:]
    rows = padded.shape[-2] if height <= tile else height
    columns = padded.shape[-1] if width <= tile else width
    return padded[..., :rows, :columns]


def side_weights(starts: Sequence[int], tile: int, scale: int, blend: Blend) -> list[Tensor]:
    """The weights of each tile along one side, in output pixels; they sum to 1 at every pixel.

    A ramp is sin^2, so two neighbours' ramps add up to 1 already; where more tiles overlap (the
    last one was shifted) the sum is divided out.

    Returns:
        for each start float32 (tile * scale,).
    """
    size = tile * scale
    weights = []
    for i, start in enumerate(starts):
        weight = torch.ones(size, dtype=torch.float64)
        if blend != "average":
            unused = 0.25 if blend == "discard" else 0.0
            if i > 0:
                weight *= _ramp((starts[i - 1] + tile - start) * scale, size, unused)
            if i < len(starts) - 1:
                weight *= _ramp((start + tile - starts[i + 1]) * scale, size, unused).flip(0)
        weights.append(weight)
    total = torch.zeros((starts[-1] + tile) * scale, dtype=torch.float64)
    for start, weight in zip(starts, weights, strict=True):
        total[start * scale : start * scale + size] += weight
    return [
        (weight / total[start * scale : start * scale + size]).float()
        for start, weight in zip(starts, weights, strict=True)
    ]


def _ramp(overlap: int, size: int, unused: float) -> Tensor:
    """sin^2 over the first ``overlap`` pixels, then 1; 0 in an ``unused`` share at its ends."""
    ramp = torch.ones(size, dtype=torch.float64)
    if overlap > 0:
        position = (torch.arange(overlap, dtype=torch.float64) + 0.5) / overlap
        position = ((position - unused) / (1 - 2 * unused)).clamp(0, 1)
        ramp[:overlap] = torch.sin(math.pi / 2 * position).square()
    return ramp


class _Canvas:
    """The output, of which only rows still under work are held in float32; filled top down.

    Args:
        shape: B, rows and columns of the output.
        turned: rows are the columns of what ``out`` holds in the end.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, *, turned: bool) -> None:
        self.shape, self.dtype, self.turned = shape, dtype, turned
        self.out = self.strip = torch.empty(0)
        self.first = 0  # row of the output that is the strip's first

    def add(self, values: Tensor, image: int, row: int, column: int, weights: Tensor) -> None:
        """Add (C', h, w) times weights (h, w) at a place; the first one tells C'."""
        batch, rows, columns = self.shape
        channels, height, width = values.shape
        if self.out.numel() == 0:
            sides = (columns, rows) if self.turned else (rows, columns)
            self.out = torch.empty(batch, channels, *sides, dtype=self.dtype)
            self.strip = torch.zeros(batch, channels, 0, columns)
        missing = row + height - self.first - self.strip.shape[-2]
        if missing > 0:
            self.strip = F.pad(self.strip, (0, 0, 0, missing))
        row -= self.first
        place = self.strip[image, :, row : row + height, column : column + width]
        place.addcmul_(values, weights)

    def finish(self, row: int) -> None:
        """No tile will touch the rows before ``row`` any more."""
        done = self.strip[..., : row - self.first, :]
        out = self.out.transpose(-1, -2) if self.turned else self.out
        out[..., self.first : row, :] = to_uint8(done) if self.dtype == torch.uint8 else done
        self.strip = self.strip[..., row - self.first :, :].clone()
        self.first = row


class _Runner:
    """Calls the function, and remembers which batch and tile sizes memory suffices for."""

    def __init__(
        self,
        fn: TileFunction,
        scale: int,
        multiple: int,
        batch_size: int,
        blend: Blend,
        overlap_share: float,
    ) -> None:
        self.fn, self.scale, self.multiple, self.blend = fn, scale, multiple, blend
        self.batch_size, self.overlap_share = batch_size, overlap_share
        self.largest = math.inf  # side of a tile

    def tiled(
        self,
        batch: Tensor,
        tile: int,
        overlap: int,
        *,
        offset: Origin | None = None,
        dtype: torch.dtype = torch.float32,
        progress: Progress | None = None,
    ) -> Tensor:
        """(B, C, H, W) -> (B, C', H * scale, W * scale), row by row of tiles."""
        image, top, left = offset or (0, 0, 0)
        # The strip lies across the longer side. In turned pictures "rows" are columns; tiles are
        # turned back for the function.
        turned = batch.shape[-1] > batch.shape[-2]
        if turned:
            batch, top, left = batch.transpose(-1, -2), left, top
        count, _, length, breadth = batch.shape
        height, width = (
            even_tile(side, tile=tile, overlap=overlap, multiple=self.multiple)
            for side in (length, breadth)
        )
        tops = tile_starts(length, height, min(overlap, height - 1))
        lefts = tile_starts(breadth, width, min(overlap, width - 1))
        s = self.scale
        row_weights = side_weights(tops, height, s, self.blend)
        column_weights = side_weights(lefts, width, s, self.blend)

        canvas = _Canvas((count, length * s, breadth * s), dtype, turned=turned)
        done, total = 0, len(tops) * len(lefts) * count
        # As many rows of tiles at a time as fill a batch.
        group = max(1, self.batch_size // (len(lefts) * count))
        for begin in range(0, len(tops), group):
            rows = range(begin, min(begin + group, len(tops)))
            jobs = [(i, j, b) for i in rows for j in range(len(lefts)) for b in range(count)]
            while jobs:
                now, jobs = jobs[: self.batch_size], jobs[self.batch_size :]
                tiles, origins = [], []
                for i, j, b in now:
                    cut = batch[b, :, tops[i] : tops[i] + height, lefts[j] : lefts[j] + width]
                    place = (top + tops[i], left + lefts[j])
                    tiles.append(cut.transpose(-1, -2) if turned else cut)
                    origins.append(Origin(image + b, *(place[::-1] if turned else place)))
                results = self.run(torch.stack(tiles), origins)
                for (i, j, b), values in zip(now, results, strict=True):
                    weights = row_weights[i][:, None] * column_weights[j]
                    values = values.transpose(-1, -2) if turned else values
                    canvas.add(values, b, tops[i] * s, lefts[j] * s, weights)
                done += len(now)
                if progress is not None:
                    progress(done, total)
            following = rows[-1] + 1
            canvas.finish((tops[following] if following < len(tops) else length) * s)
        return canvas.out

    def run(self, tiles: Tensor, origins: Sequence[Origin]) -> Tensor:
        """The results of tiles (N, C, h, w) in float32 on the CPU, in whatever pieces fit."""
        side, results, at = max(tiles.shape[-2:]), [], 0
        while at < len(tiles):
            if side > self.largest:
                results.append(self._split(tiles[at], origins[at])[None])
                at += 1
                continue
            some = tiles[at : at + self.batch_size]
            result, cause = self._attempt(some, origins[at : at + self.batch_size])
            if result is not None:
                results.append(result)
                at += len(some)
            elif len(some) > 1:
                self.batch_size = 1
            else:
                self._shrink(side, cause)
        return torch.cat(results)

    def _attempt(self, tiles: Tensor, origins: Sequence[Origin]) -> tuple[Tensor | None, str]:
        """The result, or None and the message of the failed allocation."""
        cause = ""
        try:
            result = self.fn(tiles, origins)
            height, width = (side * self.scale for side in tiles.shape[-2:])
            if result.shape[:1] + result.shape[2:] != (len(tiles), height, width):
                raise ValueError(
                    f"the network made {tuple(result.shape)} of tiles {tuple(tiles.shape)}; "
                    f"expected ({len(tiles)}, C, {height}, {width})"
                )
            finite = torch.isfinite(result).flatten(1).all(1)
            if not finite.all():
                where = origins[int(finite.long().argmin())]
                raise ValueError(
                    f"the network returned NaN or infinity for the tile at row {where.top}, "
                    f"column {where.left}; try 32-bit precision"
                )
            return result.to("cpu", torch.float32), cause
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            cause = " ".join(str(error).split()) or type(error).__name__
        release_memory()  # now that the traceback, which holds the tensors, is gone
        return None, cause

    def _shrink(self, side: int, cause: str) -> None:
        if side <= self.multiple:
            raise OutOfMemory(
                f"memory does not suffice for one tile of {side} px, the smallest the network "
                f"takes: {cause}; free memory, or use another device or 16-bit precision"
            )
        self.largest = max(self.multiple, side // 2 // self.multiple * self.multiple)

    def _split(self, tile: Tensor, origin: Origin) -> Tensor:
        """One tile (C, h, w) in smaller ones, with an overlap in proportion."""
        smaller = int(self.largest)
        overlap = int(self.overlap_share * smaller)
        return self.tiled(tile[None], smaller, overlap, offset=origin)[0]
