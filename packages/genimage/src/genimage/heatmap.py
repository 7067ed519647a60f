"""Accuracy matrices as pictures: rows are what was trained on, columns what was tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from papers_shared.checkpoints import atomic_path


@dataclass(frozen=True)
class Matrix:
    """One panel.

    Attributes:
        title: above it.
        rows, columns: names.
        values: in percent; NaN stays blank.
        note: below it, in small print: where the numbers come from.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    note: str = ""


def draw(matrices: Sequence[Matrix], path: Path, *, columns: int = 0) -> None:
    """Write panels with one common colour scale (50 to 100 %) into a PNG.

    Args:
        matrices: the panels, in reading order.
        path: of the file.
        columns: panels a line; 0: all in one.
    """
    from matplotlib.figure import Figure

    columns = min(columns or len(matrices), len(matrices))
    lines = -(-len(matrices) // columns)
    wide = max(len(m.columns) for m in matrices)
    high = max(len(m.rows) for m in matrices)
    width = (0.62 * wide + 1.9) * columns + 0.9
    height = (0.46 * high + 1.75) * lines + 0.2
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    image = None
    for axis, matrix in zip(axes.flat, matrices, strict=False):
        image = axis.imshow(matrix.values, cmap="viridis", vmin=50, vmax=100, aspect="auto")
        axis.set_xticks(range(len(matrix.columns)), matrix.columns, rotation=40, ha="right")
        axis.set_yticks(range(len(matrix.rows)), matrix.rows)
        axis.tick_params(length=0, labelsize=8)
        axis.set_title(matrix.title, fontsize=9)
        if matrix.note:
            axis.set_xlabel(matrix.note, fontsize=7, color="0.35")
        for y, row in enumerate(matrix.values):
            for x, value in enumerate(row):
                if value == value:
                    ink = "white" if value < 80 else "black"  # the map is dark below
                    axis.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=8, color=ink)
        for edge in axis.spines.values():
            edge.set_visible(False)
    for axis in axes.flat[len(matrices) :]:
        axis.set_visible(False)
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.8, extend="min", pad=0.01)
        bar.set_label("accuracy in %", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
