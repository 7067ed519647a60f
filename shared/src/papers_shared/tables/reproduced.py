"""Values that recipes computed. There is no way from a reported number to one of these.

``Reproduced`` refuses to be made elsewhere. Here it is made twice: in ``run_recipe``, from what a
recipe returns, and in ``read_rows``, from a file that ``write_rows`` wrote and nobody edited since
(each row carries a digest of its values, its provenance and its place).
"""

from __future__ import annotations

import hashlib
import json
import math
import numbers
import os
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import InitVar, asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from papers_shared.tables.provenance import Provenance
from papers_shared.tables.recipe import Context, Measured, Recipe
from papers_shared.tables.schema import nearest

FORMAT = 1
_MADE_HERE = object()


class RecipeError(ValueError):
    """A recipe returned something that its table has no place for."""


@dataclass(frozen=True)
class Reproduced:
    """A value that a recipe computed, and how. Only this module can make one."""

    value: float
    std: float | None
    n: int | None
    note: str
    scale: str
    provenance: Provenance
    made_by: InitVar[object] = None

    def __post_init__(self, made_by: object) -> None:
        if made_by is not _MADE_HERE:
            raise TypeError(
                "a Reproduced value comes out of a recipe that the runner ran, or out of a result "
                "file that it wrote; it cannot be made from a number"
            )

    @property
    def measured(self) -> Measured:
        """The value alone, as the recipe returned it."""
        return Measured(self.value, self.std, self.n, self.note)


Cells = Mapping[str, Reproduced]


class State(StrEnum):
    """What became of a row in this run."""

    EXACT = "exact"
    SMALL = "small"
    RECORDED = "recorded"
    NEEDS = "needs"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True)
class RowResult:
    """One row of a run.

    Attributes:
        state: what became of it.
        cells: column -> value; empty unless the state is exact, small or recorded.
        message: what is missing, what went wrong, or what computes it (one line).
        recorded: the committed values of a row that was computed again, for comparison.
        off: column -> how its exact value left the tolerance.
    """

    state: State
    cells: Cells = field(default_factory=dict)
    message: str = ""
    recorded: Cells = field(default_factory=dict)
    off: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for column, cell in {**self.recorded, **self.cells}.items():
            if not isinstance(cell, Reproduced):
                raise TypeError(f"column {column!r} is {cell!r}, which no recipe computed")


@dataclass(frozen=True)
class ClaimResult:
    """Whether a claim holds; None where it is not known, ``message`` saying why."""

    text: str
    holds: bool | None
    scale: str
    message: str = ""


@dataclass(frozen=True)
class TableResult:
    """One table of a run: its rows in the order of reported.yaml, claims, and what failed."""

    paper: str
    table: str
    rows: Mapping[str, RowResult]
    claims: tuple[ClaimResult, ...] = ()
    failures: tuple[str, ...] = ()


def run_recipe(
    recipe: Recipe,
    context: Context,
    *,
    columns: Collection[str],
    provenance: Callable[[], Provenance],
) -> dict[str, Reproduced]:
    """Run a recipe and give its values their provenance.

    Args:
        recipe: what to run.
        context: what it may use.
        columns: the columns that its table has.
        provenance: called once the recipe has ended.

    Raises:
        RecipeError: it returned an unknown column, or something else than finite ``Measured``.
    """
    measured = recipe.run(context)
    if not isinstance(measured, Mapping) or not measured:
        raise RecipeError(f"a recipe returns {{column: Measured}}, this one {measured!r}")
    for column, cell in measured.items():
        if column not in columns:
            raise RecipeError(f"the table has no column {column!r}; {nearest(column, columns)}")
        if not isinstance(cell, Measured) or not isinstance(cell.value, numbers.Real):
            raise RecipeError(f"column {column!r} is {cell!r}; expected Measured(a Python number)")
        if not math.isfinite(cell.value):
            raise RecipeError(f"column {column!r} is {cell.value}, which is not a finite number")
    source = provenance()
    return {
        column: Reproduced(
            _plain(cell.value),
            None if cell.std is None else float(cell.std),
            None if cell.n is None else int(cell.n),
            cell.note,
            recipe.scale,
            source,
            _MADE_HERE,
        )
        for column, cell in measured.items()
    }


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from a file (tuples become lists)."""
    return json.loads(json.dumps(dict(settings)))


def row_to_json(paper: str, table: str, row: str, cells: Cells) -> dict[str, Any]:
    """One computed row as a result file holds it, with its digest."""
    first = next(iter(cells.values()))
    body = {
        "scale": first.scale,
        "cells": {column: asdict(cell.measured) for column, cell in cells.items()},
        "provenance": asdict(first.provenance),
    }
    return body | {"digest": _digest(paper, table, row, body)}


def row_from_json(paper: str, table: str, row: str, stored: Mapping[str, Any]) -> Cells:
    """The opposite of ``row_to_json``.

    Raises:
        ValueError: the row is not as the runner wrote it.
    """
    body = {key: stored.get(key) for key in ("scale", "cells", "provenance")}
    if stored.get("digest") != _digest(paper, table, row, body):
        raise ValueError(
            f"results of {paper}, {table}, row {row} are not as the runner wrote them; remove the "
            f"row and compute it again: {command(paper, table)} --record"
        )
    provenance = Provenance(**stored["provenance"])
    return {
        column: Reproduced(**cell, scale=stored["scale"], provenance=provenance, made_by=_MADE_HERE)
        for column, cell in stored["cells"].items()
    }


def read_rows(path: Path, paper: str, table: str) -> dict[str, Cells]:
    """The computed rows of a result file; none where the file does not exist.

    Raises:
        ValueError: it is not a file of the runner, or was edited.
    """
    stored = read_json(path) if path.is_file() else {"rows": {}}
    return {
        row: row_from_json(paper, table, row, entry["computed"])
        for row, entry in stored["rows"].items()
        if entry.get("computed")
    }


def write_rows(path: Path, paper: str, table: str, rows: Mapping[str, Cells]) -> None:
    """Write computed rows alone: the form in which results are committed."""
    computed = {
        row: {"computed": row_to_json(paper, table, row, cells)} for row, cells in rows.items()
    }
    write_json(path, {"format": FORMAT, "paper": paper, "table": table, "rows": computed})


def read_json(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        ValueError: it is none.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); remove it and run again") from None
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise ValueError(f"{path} is not a result file of format {FORMAT}; remove it and run again")
    return stored


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: a temporary file beside it, then a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(name, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def command(paper: str, table: str) -> str:
    """What computes a table again."""
    return f"python -m papers_shared.tables reproduce --paper {paper} --table {table}"


def _plain(value: float) -> float:
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _digest(paper: str, table: str, row: str, body: Mapping[str, Any]) -> str:
    canonical = json.dumps([paper, table, row, body], sort_keys=True, ensure_ascii=False)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
