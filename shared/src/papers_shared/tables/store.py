"""The output folder: one JSON and one Markdown file a table, written whole or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from papers_shared.tables.entries import Entry
from papers_shared.tables.render import markdown_table
from papers_shared.tables.reproduced import (
    FORMAT,
    ClaimResult,
    RowResult,
    State,
    TableResult,
    read_json,
    row_from_json,
    row_to_json,
    write_json,
    write_text,
)
from papers_shared.tables.schema import ReportedTable
from papers_shared.workspace import workspace_root


def default_folder() -> Path:
    """``results/`` at the workspace's root, else in the current folder."""
    return (workspace_root() or Path.cwd()) / "results"


def prepare(folder: Path) -> None:
    """Make the output folder, and see that files can be written there.

    Raises:
        OSError: they cannot; the message says what to do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The superuser may write into a folder that is marked read-only; the mark still counts.
        if not stat.S_IMODE(folder.stat().st_mode) & 0o222:
            raise PermissionError("it is marked read-only")
        handle, name = tempfile.mkstemp(dir=folder)
        os.close(handle)
        os.unlink(name)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"cannot write to {folder}: {reason}; name another with --out") from None


def save(folder: Path, entry: Entry, result: TableResult) -> None:
    """Write ``<paper>/<table>.json`` and ``.md``."""
    table = entry.reported.tables[result.table]
    path = folder / result.paper / result.table
    write_json(path.with_suffix(".json"), to_json(table, result))
    write_text(path.with_suffix(".md"), markdown_table(table, result))


def load(folder: Path, entry: Entry, table: str) -> TableResult | None:
    """The last run's result of a table; None where there is none, or of other rows.

    Raises:
        ValueError: the file was edited.
    """
    path = folder / entry.name / f"{table}.json"
    if not path.is_file():
        return None
    try:
        result = from_json(read_json(path))
    except KeyError as key:
        raise ValueError(f"{path} lacks {key}; remove it and run again") from None
    return result if list(result.rows) == list(entry.reported.tables[table].rows) else None


def to_json(table: ReportedTable, result: TableResult) -> dict[str, Any]:
    """A result as a mapping: every row's reported numbers, state, and what was computed."""
    place = (result.paper, result.table)
    rows = {}
    for name, row in result.rows.items():
        cells = table.rows[name].cells
        rows[name] = {
            "label": table.rows[name].label,
            "reported": {c: [asdict(r) for r in cell.reported] for c, cell in cells.items()},
            "state": str(row.state),
            "message": row.message,
            "computed": row_to_json(*place, name, row.cells) if row.cells else None,
            "off": dict(row.off),
            "recorded": row_to_json(*place, name, row.recorded) if row.recorded else None,
        }
    return {
        "format": FORMAT,
        "paper": result.paper,
        "table": result.table,
        "title": table.title,
        "protocol": table.protocol,
        "rows": rows,
        "claims": [asdict(claim) for claim in result.claims],
        "failures": list(result.failures),
    }


def from_json(stored: dict[str, Any]) -> TableResult:
    """The opposite of ``to_json``; what it says of reported numbers is not read.

    Raises:
        ValueError: a computed row was edited.
    """
    place = (stored["paper"], stored["table"])
    rows = {}
    for name, row in stored["rows"].items():
        computed, recorded = (
            row_from_json(*place, name, row[key]) if row[key] else {}
            for key in ("computed", "recorded")
        )
        rows[name] = RowResult(State(row["state"]), computed, row["message"], recorded, row["off"])
    claims = tuple(ClaimResult(**claim) for claim in stored["claims"])
    return TableResult(*place, rows, claims, tuple(stored["failures"]))
