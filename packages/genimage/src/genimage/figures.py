"""The tables that are matrices, as heat maps: the small ones, the reported ones beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from genimage.heatmap import Matrix, draw
from genimage.recipes import reported
from papers_shared.tables import store
from papers_shared.tables.entries import Entry, belongs
from papers_shared.tables.reproduced import TableResult
from papers_shared.tables.schema import ReportedTable

SMALL_NOTE = "trained on (rows), tested on (columns): 32-pixel squares, NOT GenImage"
PICTURES = {
    "table2": (
        *("table2", "table2_small_resnet", "table2_small_cnnspot"),
        *("table2_small_spec", "table2_small_gramnet"),
    ),
    "table2_matched": ("table2_small_resnet", "table2_small_resnet_matched"),
    "table3": ("table3", "table3_small"),
    "table4": ("table4", "table4_small"),
    "table5": ("table5", "table5_small"),
}


def reported_matrix(table: ReportedTable) -> Matrix:
    """The reported numbers of a table, their origin named."""
    cells = [[row.cells.get(c) for c in table.columns] for row in table.rows.values()]
    values = [[c.reported[0].value if c and c.reported else math.nan for c in r] for r in cells]
    origins = {c.reported[0].origin for r in cells for c in r if c and c.reported}
    note = f"reported, GenImage; origin: {', '.join(sorted(origins))}"
    if "recalled" in origins:
        note += " (column means checked against Table 4)"
    labels = [row.label for row in table.rows.values()]
    return Matrix(
        _short(table.title), labels, [c.label for c in table.columns.values()], values, note
    )


def computed_matrix(table: ReportedTable, result: TableResult) -> Matrix | None:
    """What was computed or recorded of a table; None where nothing was."""
    if not any(row.cells for row in result.rows.values()):
        return None
    hidden = ("real", "generated")
    columns = [name for name in table.columns if name not in hidden]
    values = [
        [row.cells[c].value if c in row.cells else math.nan for c in columns]
        for row in result.rows.values()
    ]
    labels = [row.label.removeprefix("trained on ") for row in table.rows.values()]
    heads = [table.columns[c].label.replace("mean of the other generators", "others")
             for c in columns]  # fmt: skip
    return Matrix(_short(table.title), [_name(x) for x in labels], heads, values, SMALL_NOTE)


def _short(title: str) -> str:
    return title.split(": training generator")[0].replace(" (blur and JPEG in training)", "")


def _name(label: str) -> str:
    return label.partition(" (")[0]


def draw_tables(folder: Path, tables: Sequence[str]) -> list[Path]:
    """Draw what the last run or the committed results hold.

    Args:
        folder: of the results; the pictures go to its ``genimage/``.
        tables: as the command line names them; none means all.

    Returns:
        the pictures written.
    """
    entry = Entry("genimage", "genimage", reported())
    written = []
    for name, parts in PICTURES.items():
        if tables and not any(belongs(part, tables) for part in parts):
            continue
        panels: list[Matrix] = []
        for part in parts:
            table = reported().tables[part]
            result = store.load(folder, entry, part)
            computed = computed_matrix(table, result) if result is not None else None
            if "small" not in part:
                panels.append(reported_matrix(table))
            elif computed is not None:
                panels.append(computed)
        if any(panel.note == SMALL_NOTE for panel in panels):
            path = folder / "genimage" / f"{name}.png"
            draw(panels, path, columns=3)
            written.append(path)
    return written
