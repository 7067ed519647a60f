"""The README's table: one line a paper, with its claim and the cells that stand for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from papers_shared.tables.entries import Entry
from papers_shared.tables.render import escape, reported_text, state_text, value_text
from papers_shared.tables.reproduced import State, TableResult
from papers_shared.tables.schema import Cell

Results = Mapping[str, TableResult]  # table -> result, of one paper


def summary_markdown(papers: Iterable[tuple[Entry, Results]]) -> str:
    """The table of papers; one without a headline is left out.

    Args:
        papers: each paper with its results, by table.
    """
    lines = ["| Paper | Claim | Reported | Reproduced |", "| --- | --- | --- | --- |"]
    for entry, results in papers:
        if not entry.reported.headline:
            continue
        pairs = headline(entry, results)
        reported = "<br>".join(escape(f"{what}: {left}") for what, left, _ in pairs)
        reproduced = [escape(f"{right}") for _, _, right in pairs]
        reproduced += [escape(text) for text in claims_text(results)]
        folder = "shared" if entry.module == "papers_shared" else f"packages/{entry.name}"
        name = f"[{entry.name}]({folder}) {escape(entry.reported.title)}"
        claim = escape(entry.reported.claim)
        lines.append(f"| {name} | {claim} | {reported} | {'<br>'.join(reproduced)} |")
    return "\n".join(lines) + "\n"


def headline(entry: Entry, results: Results) -> list[tuple[str, str, str]]:
    """The cells that stand for a paper: what they are, reported, reproduced."""
    pairs = []
    for place in entry.reported.headline:
        table = entry.reported.tables[place.table]
        row, column = table.rows[place.row], table.columns[place.column]
        entries = row.cells.get(place.column, Cell()).reported
        unit = f" {column.unit}" if column.unit else ""
        reported = ", ".join(reported_text(e, note=False) for e in entries) or "—"
        outcome = results[place.table].rows[place.row]
        # A row may hold some of its numbers and need something for the others.
        missing = State.NEEDS if outcome.cells and row.needs else outcome.state
        reproduced = f"not yet ({missing})"
        if place.column in outcome.cells:
            cell = outcome.cells[place.column]
            when = f" {cell.provenance.date[:10]}" if outcome.state is State.RECORDED else ""
            how = state_text(cell, outcome.state) + when
            reproduced = f"{value_text(cell, column)}{unit} ({how})"
        pairs.append((f"{row.label}, {column.label}{unit and f' in{unit}'}", reported, reproduced))
    return pairs


def claims_text(results: Results) -> list[str]:
    """``3 of 4 claims hold at small scale``, for each scale that has claims."""
    lines = []
    for scale, suffix in (("exact", ""), ("small", " at small scale")):
        known = [
            claim
            for result in results.values()
            for claim in result.claims
            if claim.scale == scale and claim.holds is not None
        ]
        if known:
            hold = sum(claim.holds is True for claim in known)
            lines.append(f"{hold} of {len(known)} claims hold{suffix}")
    return lines


def states_text(results: Iterable[TableResult]) -> str:
    """``12 rows exact, 3 recorded, 5 needs``: what became of the rows."""
    counts = Counter(row.state for result in results for row in result.rows.values())
    return ", ".join(f"{counts[state]} {state}" for state in State if counts[state]) or "no rows"
