"""One static page: an index of papers, every table, and the provenance of every value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from papers_shared.tables.entries import Entry
from papers_shared.tables.render import (
    LEGEND,
    Notes,
    absent_text,
    lines_below,
    reported_text,
    state_text,
    value_text,
)
from papers_shared.tables.reproduced import Reproduced, RowResult, State, TableResult
from papers_shared.tables.schema import Cell, Column, ReportedTable, Row
from papers_shared.tables.summary import Results, claims_text, headline, states_text


def page(papers: Iterable[tuple[Entry, Results]]) -> str:
    """The page, without scripts or any resource from elsewhere.

    Args:
        papers: each paper with its results, by table.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("papers_shared.tables"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html")
    return template.render(papers=[_paper(*paper) for paper in papers], legend=LEGEND)


def _paper(entry: Entry, results: Results) -> dict[str, Any]:
    return {
        "name": entry.name,
        "reported": entry.reported,
        "headline": headline(entry, results),
        "claims": claims_text(results),
        "states": states_text(results.values()),
        "tables": [_table(entry.reported.tables[name], result) for name, result in results.items()],
    }


def _table(table: ReportedTable, result: TableResult) -> dict[str, Any]:
    notes = Notes(result)
    rows = [
        {
            "label": row.label,
            "cells": [
                _cell(row, result.rows[name], column, notes) for column in table.columns.values()
            ],
        }
        for name, row in table.rows.items()
    ]
    return {
        "id": f"{result.paper}-{result.table}",
        "name": result.table,
        "table": table,
        "rows": rows,
        "lines": [line for line in lines_below(result) if line.kind != "computed"],
    }


def _cell(row: Row, outcome: RowResult, column: Column, notes: Notes) -> dict[str, Any]:
    entries = row.cells.get(column.name, Cell()).reported
    cell: dict[str, Any] = {
        "reported": [
            {"text": reported_text(entry, note=False), "note": entry.note} for entry in entries
        ]
    }
    if column.name in outcome.cells:
        computed = outcome.cells[column.name]
        off, recorded = column.name in outcome.off, outcome.state is State.RECORDED
        cell |= {
            "value": value_text(computed, column),
            "state": State.FAILED if off else outcome.state,
            "badge": state_text(computed, outcome.state) + (", out of tolerance" if off else ""),
            "note": computed.note + (notes.mark(outcome) if recorded else ""),
            "details": _details(computed),
        }
    elif badge := absent_text(row, outcome, column, notes):
        cell |= {"state": State.NEEDS if outcome.cells else outcome.state, "badge": badge}
    return cell


def _details(cell: Reproduced) -> list[tuple[str, str]]:
    source = cell.provenance
    files = [
        f"{file} {checksum}"
        for found in source.assets.values()
        for file, checksum in found["checksums"].items()
    ]
    details = [
        ("command", source.command),
        ("code", source.commit + (" with changes" if source.modified else "")),
        ("seed", str(source.seed)),
        ("device", source.device),
        ("versions", ", ".join(f"{name} {found}" for name, found in source.versions.items())),
        ("data", "; ".join(files)),
        ("settings", ", ".join(f"{key} = {value}" for key, value in source.settings.items())),
        ("date", f"{source.date}, {source.seconds:,.1f} s"),
        ("repetitions", "" if cell.n is None else f"{cell.n:,}"),
    ]
    return [(name, text) for name, text in details if text]
