"""Data upcycling: new inputs from the pictures at hand, and transforms that can be undone.

Source: dukd sheet 4.1 to 4.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from papers_shared.data.resize import imresize

OPERATIONS = ("i", "h", "v", "t")  # inverted colours, rows flipped, columns flipped, transposed


def zoom_in(hr: Tensor, cells: Sequence[int], *, scale: int) -> Tensor:
    """Cells of the ground truth, each of the size of the low-resolution patch.

    Args:
        hr: (B, C, s * H, s * W).
        cells: numbers of the cells, row-major, 0 to s * s - 1; the same for the whole batch.
        scale: s.

    Returns:
        (len(cells) * B, C, H, W), cell by cell.

    Raises:
        ValueError: sides that ``scale`` does not divide, or a cell that is not there.
    """
    height, width = hr.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f"a {height}x{width} patch has no {scale} x {scale} grid of equal cells")
    if not cells or not all(0 <= cell < scale**2 for cell in cells):
        raise ValueError(f"cells are numbers from 0 to {scale**2 - 1}, at least one, not {cells}")
    height, width = height // scale, width // scale
    rows_columns = [divmod(int(cell), scale) for cell in cells]
    return torch.cat(
        [hr[..., i * height :, j * width :][..., :height, :width] for i, j in rows_columns]
    )


def zoom_out(lr: Tensor, *, scale: int) -> Tensor:
    """The low-resolution patch reduced once more, as MATLAB does; neither rounded nor clipped.

    Args:
        lr: (B, C, H, W).
        scale: s, which divides H and W.

    Returns:
        (B, C, H / s, W / s).

    Raises:
        ValueError: sides that ``scale`` does not divide: the labels would not fit.
    """
    height, width = lr.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(
            f"zoom-out needs sides that are multiples of the scale {scale}, got {height}x{width}"
        )
    return imresize(lr, 1 / scale)


def draw_cells(rng: np.random.RandomState, count: int, *, scale: int) -> list[int]:
    """``count`` different cells of the s x s grid.

    Raises:
        ValueError: the grid has fewer.
    """
    if not 0 <= count <= scale**2:
        raise ValueError(f"a picture has {scale**2} cells at scale {scale}, not {count}")
    return [int(cell) for cell in rng.permutation(scale**2)[:count]]


@dataclass(frozen=True)
class InvertibleTransforms:
    """For each item of a batch, which of four operations are applied to it.

    Attributes:
        inverted: items whose colours become 1 - x.
        rows: items whose rows are flipped.
        columns: items whose columns are flipped.
        transposed: items whose rows become columns; patches must then be square.
    """

    inverted: Tensor
    rows: Tensor
    columns: Tensor
    transposed: Tensor

    @classmethod
    def draw(
        cls,
        rng: np.random.RandomState,
        size: int,
        *,
        probability: float = 0.3,
        operations: str = "ihvt",
    ) -> InvertibleTransforms:
        """Each operation with ``probability``, independently, for ``size`` items.

        Args:
            rng: one call an operation, in the order i, h, v, t, as the authors draw.
            size: items of the batch.
            probability: of each.
            operations: those that may be chosen, of ``ihvt``.

        Raises:
            ValueError: no probability, or an unknown operation.
        """
        if not 0 <= probability <= 1 or set(operations) - set(OPERATIONS):
            raise ValueError(
                f"expected a probability and operations of ihvt, not {probability} and "
                f"{operations!r}"
            )
        chosen = []
        for name in OPERATIONS:
            drawn = rng.choice([0, 1], size=size, p=[1 - probability, probability])
            chosen.append(torch.from_numpy(drawn.astype(bool) & (name in operations)))
        return cls(*chosen)

    @classmethod
    def of(cls, size: int, items: Mapping[str, Sequence[int]]) -> InvertibleTransforms:
        """From the items that get each operation, by its letter."""
        masks = [torch.zeros(size, dtype=torch.bool) for _ in OPERATIONS]
        for mask, name in zip(masks, OPERATIONS, strict=True):
            mask[list(items.get(name, ()))] = True
        return cls(*masks)

    def apply(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> the same shape; i, then h, v, t."""
        for name in OPERATIONS:
            x = self._operation(name, x)
        return x

    def undo(self, x: Tensor, *, released_order: bool = False) -> Tensor:
        """Back, exactly: t, then v, h, i.

        Args:
            x: (B, C, H, W), what a network made of ``apply``'s result.
            released_order: i, h, v, t once more, as the released code has it: where t meets
                exactly one of h and v, the picture comes back turned by 180 degrees.
        """
        for name in OPERATIONS if released_order else reversed(OPERATIONS):
            x = self._operation(name, x)
        return x

    def _operation(self, name: str, x: Tensor) -> Tensor:
        mask = {
            "i": self.inverted,
            "h": self.rows,
            "v": self.columns,
            "t": self.transposed,
        }[name]
        if not mask.any():
            return x
        if name == "t" and x.shape[-2] != x.shape[-1]:
            raise ValueError(
                f"a batch of {x.shape[-2]}x{x.shape[-1]} patches cannot be transposed in part; "
                "train on square patches"
            )
        changed = {
            "i": lambda: 1 - x,
            "h": lambda: x.flip(-2),
            "v": lambda: x.flip(-1),
            "t": lambda: x.transpose(-1, -2),
        }[name]()
        return torch.where(mask.to(x.device)[:, None, None, None], changed, x)
