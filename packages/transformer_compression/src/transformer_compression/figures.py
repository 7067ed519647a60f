"""Quality against size and against latency, drawn: of a comparison, and of the tables' results."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from papers_shared.tables import schema, store
from papers_shared.tables.entries import Entry, belongs
from papers_shared.tables.schema import ReportedTable
from papers_shared.workspace import package_file

# Table -> its columns of quality, size and time.
DRAWN = {
    "table1": ("perplexity", "bytes", "forward_ms"),
    "vision": ("top1", "megabytes", "milliseconds"),
}
FAR = 20.0  # times the best perplexity: what is worse is left out and named


def plot(
    rows: Mapping[str, Mapping[str, float]],
    folder: Path,
    *,
    title: str,
    quality: tuple[str, str],
    axes: Mapping[str, str],
) -> list[Path]:
    """One SVG file an axis.

    Args:
        rows: label -> values.
        folder: where they go.
        title: of all.
        quality: column of the quality, and what its axis says.
        axes: column -> what its axis says.

    Returns:
        the files.
    """
    import matplotlib as mpl
    import numpy as np

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    column, name = quality
    rows = {label: values for label, values in rows.items() if column in values}
    left_out = []
    if column == "perplexity":
        best = min(values[column] for values in rows.values())
        left_out = [label for label, values in rows.items() if values[column] > FAR * best]
    made = []
    for axis, label in axes.items():
        shown = {k: v for k, v in rows.items() if k not in left_out and axis in v}
        figure, plane = plt.subplots(figsize=(11, 6.5), layout="constrained")
        colours = plt.colormaps["turbo"](np.linspace(0.05, 0.95, len(shown)))
        for number, (row, values) in enumerate(shown.items(), 1):
            place = (values[axis], values[column])
            plane.scatter(*place, s=18, color=colours[number - 1], label=f"{number}  {row}")
            plane.annotate(
                str(number), place, fontsize=7, xytext=(3, 3), textcoords="offset points"
            )
        if column == "perplexity":
            plane.set_yscale("log")
        plane.set_xlabel(label)
        plane.set_ylabel(name)
        plane.set_title(title, fontsize=9)
        if left_out:
            more = f"left out, above {FAR:.0f} times the best: {'; '.join(left_out)}"
            figure.suptitle(textwrap.fill(more, 140), y=0, va="top", fontsize=7)
        plane.grid(alpha=0.3)
        figure.legend(loc="outside right center", fontsize=7, frameon=False)
        made.append(folder / f"{column}_{axis}.svg")
        figure.savefig(made[-1], metadata={"Date": None}, bbox_inches="tight")
        plt.close(figure)
    return made


def draw_tables(folder: Path, tables: Sequence[str]) -> list[Path]:
    """Draw what the last run or the committed results hold.

    Args:
        folder: of the results; the pictures go to its ``transformer_compression/``.
        tables: as the command line names them; none means all.

    Returns:
        the pictures written.
    """
    reported = schema.load(package_file("transformer_compression", "reported.yaml"))
    entry = Entry("transformer_compression", "transformer_compression", reported)
    written: list[Path] = []
    for name, (quality, *axes) in DRAWN.items():
        result = store.load(folder, entry, name) if not tables or belongs(name, tables) else None
        if result is None:
            continue
        table = reported.tables[name]
        rows = {
            table.rows[row].label: {column: cell.value for column, cell in found.cells.items()}
            for row, found in result.rows.items()
            if found.cells
        }
        if len(rows) > 1:
            target = folder / entry.name / name
            target.mkdir(parents=True, exist_ok=True)
            written += plot(
                rows,
                target,
                title=f"{table.title.removesuffix(' (small scale)')} (small scale)",
                quality=(quality, _axis(table, quality)),
                axes={axis: _axis(table, axis) for axis in axes},
            )
    return written


def _axis(table: ReportedTable, name: str) -> str:
    column = table.columns[name]
    return f"{column.label} ({column.unit})" if column.unit else column.label
