"""A table in words: what stands in its cells and below it, in the terminal and as Markdown."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from papers_shared.tables.reproduced import Reproduced, RowResult, State, TableResult
from papers_shared.tables.schema import RECALLED, Cell, Column, Reported, ReportedTable, Row

if TYPE_CHECKING:
    from rich.console import Console

SIDE_BY_SIDE = 2  # up to this many columns, reported and reproduced stand in columns of their own
COLUMNS_A_BLOCK = 4  # a wider table is printed in blocks of at most so many columns
PIPED_WIDTH = 100
LABEL_WIDTH, WIDE_LABEL = 26, 44
STYLES = {
    State.EXACT: "green",
    State.SMALL: "cyan",
    State.RECORDED: "blue",
    State.NEEDS: "yellow",
    State.SKIPPED: "dim",
    State.FAILED: "bold red",
}
LEGEND = {
    State.EXACT: "computed now, under the paper's own protocol",
    State.SMALL: "computed now at a small scale: checks the claim, not the number",
    State.RECORDED: "computed earlier by the same command and committed with its provenance",
    State.NEEDS: "not computed: the note says what is missing and where it is had",
    State.SKIPPED: "not computed: outside the budget, and no record fits",
    State.FAILED: "its recipe failed",
}


@dataclass(frozen=True)
class Line:
    """A line below a table; ``kind`` is note, computed, claim or failure."""

    kind: str
    label: str
    text: str


def number(value: float, digits: int) -> str:
    """A computed value with the digits of its column."""
    return f"{value:,.{digits}f}"


def reported_text(entry: Reported, *, note: bool = True) -> str:
    """``88.1 (paper: README)``; a recalled number in brackets, ``[79.3 recalled]``."""
    about = f": {entry.note}" if note and entry.note else ""
    if entry.origin == RECALLED:
        return f"[{entry.value:,} {entry.origin}{about}]"
    return f"{entry.value:,} ({entry.origin}{about})"


def reproduced_text(result: RowResult, column: Column, mark: str, *, note: bool = True) -> str:
    """``87.99 (exact; 8785 of 9984)``, ``1.58 ± 0.02 (recorded, small scale)``."""
    cell = result.cells[column.name]
    if result.state is not State.RECORDED:
        mark = ""
    off = ", OUT OF TOLERANCE" if column.name in result.off else ""
    about = f"; {cell.note}" if note and cell.note else ""
    return f"{value_text(cell, column)} ({state_text(cell, result.state)}{off}{about}){mark}"


def value_text(cell: Reproduced, column: Column) -> str:
    """``1.58 ± 0.02``."""
    spread = f" ± {number(cell.std, column.digits)}" if cell.std is not None else ""
    return number(cell.value, column.digits) + spread


def state_text(cell: Reproduced, state: State) -> str:
    """``exact``, ``small scale``, ``recorded, exact`` or ``recorded, small scale``."""
    scale = "small scale" if cell.scale == "small" else "exact"
    return f"recorded, {scale}" if state is State.RECORDED else scale


class Notes:
    """Numbers the messages of a table's rows; equal ones share a number."""

    def __init__(self, result: TableResult) -> None:
        messages = dict.fromkeys(row.message for row in result.rows.values() if row.message)
        self.numbers = {message: index for index, message in enumerate(messages, 1)}

    def mark(self, result: RowResult) -> str:
        return f" (note {self.numbers[result.message]})" if result.message else ""


def cell_texts(
    row: Row, result: RowResult, column: Column, notes: Notes, *, details: bool
) -> tuple[str, str]:
    """What stands in one cell: the reported side, a line an entry, and the reproduced side.

    Args:
        row: of reported.yaml.
        result: what became of it.
        column: of reported.yaml.
        notes: of the table.
        details: whether the notes of single numbers are wanted, too.
    """
    entries = row.cells.get(column.name, Cell()).reported
    reported = "\n".join(reported_text(entry, note=details) for entry in entries)
    if column.name in result.cells:
        return reported, reproduced_text(result, column, notes.mark(result), note=details)
    return reported, absent_text(row, result, column, notes)


def absent_text(row: Row, result: RowResult, column: Column, notes: Notes) -> str:
    """``needs (note 1)``, in the cells where something was to be had; else nothing."""
    if result.cells:  # the row was computed: its note, if any, says why not this cell
        wanted = result.message and row.cells.get(column.name, Cell()).reported
        return f"needs{notes.mark(result)}" if wanted else ""
    if row.cells and column.name not in row.cells:
        return ""
    word = "not run" if result.state is State.SKIPPED else str(result.state)
    return word + notes.mark(result)


def lines_below(result: TableResult) -> Iterator[Line]:
    """Notes, provenance, claims and failures of a table."""
    for message, index in Notes(result).numbers.items():
        yield Line("note", f"note {index}", message)
    seconds: dict[str, list[float]] = {}
    for row in result.rows.values():
        if row.cells:
            source = next(iter(row.cells.values())).provenance
            verb = "recorded" if row.state is State.RECORDED else "computed"
            seconds.setdefault(f"{verb} {source.line}", []).append(source.seconds)
    for text, times in seconds.items():
        rows = f"{len(times)} row{'s' if len(times) > 1 else ''}"
        yield Line("computed", rows, f"{text}, {sum(times):,.1f} s")
    for claim in result.claims:
        verdict = {True: "holds", False: "does not hold", None: "not known"}[claim.holds]
        scale = " at small scale" if claim.holds is not None and claim.scale == "small" else ""
        message = f" ({claim.message})" if claim.message else ""
        yield Line("claim", f"claim {verdict}{scale}", f"{claim.text}{message}")
    for failure in result.failures:
        yield Line("failure", "FAILED", failure)


def make_console() -> Console:
    """stdout: coloured on a terminal; elsewhere without colours, at least 100 columns wide."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPED_WIDTH
    return console


def print_table(table: ReportedTable, result: TableResult, console: Console) -> None:
    """Print a table, rows x columns, and the lines below it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    notes = Notes(result)
    columns = list(table.columns.values())
    beside = len(columns) <= SIDE_BY_SIDE
    block = math.ceil(len(columns) / math.ceil(len(columns) / COLUMNS_A_BLOCK))
    console.print()
    console.print(Text(f"{result.paper} · {result.table} · {table.title}", style="bold"))
    console.print(Text(table.protocol, style="dim"))
    for start in range(0, len(columns), block):
        shown = columns[start : start + block]
        grid = Table(show_lines=not beside, header_style="bold", box=box.ROUNDED)
        longest = max(len(row.label) for row in table.rows.values())
        grid.add_column("", width=min(longest, LABEL_WIDTH if len(shown) > 1 else WIDE_LABEL))
        for column in shown:
            heading = Text(column.heading)
            if beside:
                grid.add_column(heading + Text("\nreported"), justify="left")
                grid.add_column(heading + Text("\nreproduced"), justify="left")
            else:
                grid.add_column(heading + Text("\nreported\n= reproduced"), justify="left")
        for name, row in table.rows.items():
            line: list[Text] = [Text(row.label)]
            for column in shown:
                outcome = result.rows[name]
                left, right = cell_texts(row, outcome, column, notes, details=beside)
                state = State.FAILED if column.name in outcome.off else outcome.state
                reproduced = Text(right, style=STYLES[state])
                if beside:
                    line += [Text(left), reproduced]
                else:
                    sides = [Text(left)] if left else []
                    sides += [Text("= ") + reproduced] if right else []
                    line.append(Text("\n").join(sides))
            grid.add_row(*line)
        console.print(grid)
    for below in lines_below(result):
        style = {"failure": "bold red", "claim": "bold"}.get(below.kind, "dim")
        console.print(Text.assemble((below.label, style), ": ", below.text))


def markdown_table(table: ReportedTable, result: TableResult) -> str:
    """The same as Markdown."""
    notes = Notes(result)
    columns = list(table.columns.values())
    beside = len(columns) <= SIDE_BY_SIDE
    header = [""]
    for column in columns:
        sides = ("reported", "reproduced") if beside else ("reported<br>**reproduced**",)
        header += [f"{escape(column.heading)}<br>{side}" for side in sides]
    grid = [header, ["---"] * len(header)]
    for name, row in table.rows.items():
        line = [escape(row.label)]
        for column in columns:
            outcome = result.rows[name]
            left, right = cell_texts(row, outcome, column, notes, details=beside)
            left, right = escape(left), f"**{escape(right)}**" if right else ""
            line += [left, right] if beside else ["<br>".join(s for s in (left, right) if s)]
        grid.append(line)
    body = "\n".join(f"| {' | '.join(line)} |" for line in grid)
    below = "\n".join(f"- {line.label}: {escape(line.text)}" for line in lines_below(result))
    title = f"### {escape(table.title)} ({result.paper}, {result.table})"
    return f"{title}\n\n{escape(table.protocol)}\n\n{body}\n\n{below}\n"


def escape(text: str) -> str:
    """Text that stands for itself in a Markdown table."""
    for sign in "\\|*<":
        text = text.replace(sign, "\\" + sign)
    return text.replace("\n", "<br>")
