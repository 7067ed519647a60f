"""Which pixel stands where in the windows of NVSM attention: masks, rolls, and both as indices.

A mask of length 2w says which w rows (and columns) of a 2w x 2w window are kept; windows stand at
stride w, so the last one needs w rows below the map, which ``pad_type`` provides. With the wrapped
border every mask that takes each position modulo w once is a permutation of rows.

Source: LIPT (IEEE TIP 2025), "non-volatile sparse masking self-attention"; lipt sheet 3.3 and 3.4.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PAD_TYPES = ("sparse", "zero_pad", "ref_pad")
MASKS = ("sparse", "dense", "sector", "random")
_SECTORS = {8: (2, 3, 4, 5, 8, 9, 14, 15), 16: (*range(2, 14), *range(22, 26))}


def mask_positions(mask: str, window: int, *, seed: int = 0) -> tuple[int, ...]:
    """The kept positions of a mask, ascending, out of 0 .. 2 * window - 1.

    Args:
        mask: ``sparse`` (even ones of the first half, odd ones of the second; the authors' code
            has windows 8 and 16, any even one works), ``dense`` (the first half: plain windows),
            ``sector`` (windows 8 and 16) or ``random`` (drawn from ``seed``).
        window: the side w of a window.
        seed: of ``random``.

    Raises:
        ValueError: there is no such mask for this window.
    """
    if mask == "dense":
        return tuple(range(window))
    if mask == "sparse" and window % 2 == 0:
        return (*range(0, window, 2), *range(window + 1, 2 * window, 2))
    if mask == "sector" and window in _SECTORS:
        return _SECTORS[window]
    if mask == "random":
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(2 * window, generator=generator, device="cpu")[:window]
        return tuple(sorted(drawn.tolist()))
    if mask not in MASKS:
        raise ValueError(f"mask {mask!r}: expected one of {', '.join(MASKS)}")
    fits = "an even window" if mask == "sparse" else "a window of 8 or 16"
    raise ValueError(f"mask {mask!r} with window {window}: expected {fits}")


def masked_rows(
    length: int, window: int, positions: Sequence[int], pad_type: str = "sparse"
) -> list[int | None]:
    """For each row of the masked map the row it comes from; None where it is zero.

    Args:
        length: rows of the map, a multiple of ``window``.
        window: the side w.
        positions: w positions in 0 .. 2w - 1, see :func:`mask_positions`.
        pad_type: what stands below the last row: ``sparse`` the first w rows, ``zero_pad`` zeros,
            ``ref_pad`` the last w rows again.

    Raises:
        ValueError: unknown pad_type.
    """
    if pad_type not in PAD_TYPES:
        raise ValueError(f"pad_type {pad_type!r}: expected one of {', '.join(PAD_TYPES)}")
    below: dict[str, list[int | None]] = {
        "sparse": list(range(window)),
        "zero_pad": [None] * window,
        "ref_pad": list(range(length - window, length)),
    }
    rows = [*range(length), *below[pad_type]]
    return [rows[start + p] for start in range(0, length, window) for p in positions]


@dataclass(frozen=True)
class Group:
    """How one group of channels is cut into windows.

    Attributes:
        window: the side w; height and width of the map are multiples of it.
        shift: rows and columns that the map is rolled by beforehand and back afterwards.
        positions: of the mask, or None for plain windows.
        pad_type: of the mask's border.
        restore: put every pixel back to where the mask took it from; the authors' code does not.
    """

    window: int
    shift: int = 0
    positions: tuple[int, ...] | None = None
    pad_type: str = "sparse"
    restore: bool = False

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window {self.window}: expected an integer from 1 up")
        chosen = self.positions
        if chosen is None:
            return
        if len(chosen) != self.window or not all(0 <= p < 2 * self.window for p in chosen):
            raise ValueError(
                f"mask positions {chosen}: expected {self.window} of 0..{2 * self.window - 1}"
            )
        if self.restore and not self.is_permutation:
            raise ValueError(
                "positions cannot be restored: this mask and pad_type leave pixels out and take "
                "others twice; take pad_type 'sparse' and mask 'sparse', or restore nothing"
            )

    @property
    def is_permutation(self) -> bool:
        """Whether the windows hold every pixel exactly once, whatever the size of the map."""
        if self.positions is None:
            return True
        once = sorted(p % self.window for p in self.positions) == list(range(self.window))
        return once and (self.pad_type == "sparse" or not self.reaches_border)

    @property
    def reaches_border(self) -> bool:
        """Whether the mask takes anything from below or beside the map."""
        return self.positions is not None and max(self.positions) >= self.window


@dataclass(frozen=True)
class Rows:
    """A gather of rows, and the one that undoes it (None: it is no permutation).

    ``zero`` marks the rows that are zero; their ``index`` is a placeholder.
    """

    index: Tensor
    inverse: Tensor | None
    zero: Tensor | None


@functools.lru_cache(maxsize=64)
def pixels(group: Group, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(H * W,) each, in order of windows and of the pixels in them, both row-major.

    Returns:
        the pixel (row * W + column) whose value is taken, -1 for zero, and the pixel that the
        result goes to.
    """
    with torch.inference_mode(False):  # autograd must be able to keep them
        taken = _windows(group, height, width, masked=True)
        given = taken if group.restore else _windows(group, height, width, masked=False)
        return taken.to(device), given.to(device)


def _windows(group: Group, height: int, width: int, *, masked: bool) -> Tensor:
    axes = []
    for length in (height, width):
        rows: Sequence[int | None] = range(length)
        if masked and group.positions is not None:
            rows = masked_rows(length, group.window, group.positions, group.pad_type)
        axes.append([-1 if r is None else (r + group.shift) % length for r in rows])
    row, column = (torch.tensor(axis, device="cpu") for axis in axes)
    pixel = row[:, None] * width + column
    pixel[(row < 0)[:, None] | (column < 0)] = -1
    w = group.window
    cut = pixel.view(height // w, w, width // w, w)
    return cut.transpose(1, 2).flatten()


@functools.lru_cache(maxsize=32)
def rows_of(
    groups: tuple[Group, ...], batch: int, height: int, width: int, device: torch.device
) -> tuple[Rows, Tensor, Tensor]:
    """Gathers for tokens of shape (batch * H * W * groups, channels of a group).

    Returns:
        the gather into windows, to rows ordered group, picture, window, pixel; the rows of the
        gather back, and those that undo it.
    """
    with torch.inference_mode(False):
        size = height * width
        first = size * torch.arange(batch, device=device)[:, None]
        count = len(groups)
        taken, given, zero = [], [], []
        for g, group in enumerate(groups):
            source, target = pixels(group, height, width, device)
            zero.append((source < 0).expand(batch, -1).flatten())
            taken.append(((source.clamp(min=0) + first) * count + g).flatten())
            given.append(((target + first) * count + g).flatten())
        index, to, none = torch.cat(taken), torch.cat(given), torch.cat(zero)
        permutation = all(group.is_permutation for group in groups)
        has_zeros = any(g.pad_type == "zero_pad" and g.reaches_border for g in groups)
        forth = Rows(index, _inverse(index) if permutation else None, none if has_zeros else None)
        return forth, _inverse(to), to


def _inverse(index: Tensor) -> Tensor:
    inverse = torch.empty_like(index)
    inverse[index] = torch.arange(len(index), device=index.device)
    return inverse
