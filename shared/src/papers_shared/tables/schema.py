"""``reported.yaml``: every number a paper reports, by table, row and column, with its origin.

The schema holds what others reported and what guards our own results (``expected``). It has no
field for a reproduced value: those come from recipes alone (``papers_shared.tables.reproduced``).

    paper: adabin                          # the import name of the package
    title: "AdaBin: ..."
    reference: "arXiv 2208.08084"
    claim: one sentence for the summary
    headline: [{table: table1, row: resnet20_adabin, column: top1}]
    tables:
      table1:
        title: CIFAR-10 classification
        protocol: top-1 on the 10,000 test images
        columns:
          top1: {label: Top-1, unit: "%", digits: 2, better: higher}
        rows:
          resnet20_adabin:
            label: "ResNet-20, AdaBin, 1/1"
            scale: exact                   # what this row's recipe computes: exact or small
            cells:
              top1:
                reported:
                  - {value: 88.1, origin: paper, note: README}
                expected: {value: 88.0, tolerance: 0.05, why: measured with the checkpoint}
          alexnet:
            label: AlexNet
            needs: ImageNet (image-net.org, by registration); then python -m adabin.eval ...
            cells: {top1: {reported: [{value: 53.9, origin: paper}]}}
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ORIGINS = ("paper", "authors' code", "checkpoint", "third party", "recalled")
RECALLED = "recalled"
SCALES = ("exact", "small")
DIRECTIONS = ("higher", "lower")


class SchemaError(ValueError):
    """``reported.yaml`` is not valid; the message names file, table, row, column and remedy."""


@dataclass(frozen=True)
class Reported:
    """One number that somebody reported, and who.

    Attributes:
        value: in the column's unit, with the digits that were printed.
        origin: one of ``ORIGINS``. A ``recalled`` number is shown in brackets, never compared.
        note: the setting, or where it stands.
        tolerance: how far an exact row may be off where no ``expected`` stands.
    """

    value: float
    origin: str
    note: str = ""
    tolerance: float | None = None


@dataclass(frozen=True)
class Expected:
    """What we measured before under this very protocol: a guard, never shown as reproduced."""

    value: float
    tolerance: float
    why: str


@dataclass(frozen=True)
class Column:
    name: str
    label: str
    unit: str = ""
    digits: int = 2
    better: str = ""

    @property
    def heading(self) -> str:
        arrow = {"higher": " ↑", "lower": " ↓"}.get(self.better, "")
        return f"{self.label}{f' ({self.unit})' if self.unit else ''}{arrow}"


@dataclass(frozen=True)
class Cell:
    reported: tuple[Reported, ...] = ()
    expected: Expected | None = None

    @property
    def guards(self) -> tuple[Reported | Expected, ...]:
        """What an exact value has to stay near: ``expected``, else the reported tolerances."""
        if self.expected is not None:
            return (self.expected,)
        return tuple(r for r in self.reported if r.tolerance is not None)


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        scale: what the row's recipe computes, ``exact`` or ``small``; empty without a recipe.
        needs: why no recipe can compute it (or its empty cells) here, where the missing thing is
            had, and the command that then runs.
    """

    name: str
    label: str
    scale: str = ""
    needs: str = ""
    cells: Mapping[str, Cell] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportedTable:
    name: str
    title: str
    protocol: str
    columns: Mapping[str, Column]
    rows: Mapping[str, Row]


@dataclass(frozen=True)
class Headline:
    """A cell that stands for the paper in the summary."""

    table: str
    row: str
    column: str


@dataclass(frozen=True)
class Paper:
    paper: str
    title: str
    reference: str
    tables: Mapping[str, ReportedTable]
    claim: str = ""
    headline: tuple[Headline, ...] = ()


def load(path: Path) -> Paper:
    """Read and check one ``reported.yaml``.

    Raises:
        SchemaError: it is not valid, in one line.
        FileNotFoundError: it does not exist.
    """
    where = "/".join(path.parts[-2:])
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        raise SchemaError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
    return parse(raw, where=where)


def parse(raw: Any, *, where: str = "reported.yaml") -> Paper:
    """Check what a ``reported.yaml`` holds; ``where`` opens every error message.

    Raises:
        SchemaError: an entry is missing, unknown or of the wrong type.
    """
    top = _mapping(raw, where)
    _keys(top, where, required=("paper", "title", "reference", "tables"), optional=_TOP_OPTIONAL)
    tables = {
        name: _table(str(name), table, f"{where}: {name}")
        for name, table in _mapping(top["tables"], f"{where}: tables").items()
    }
    texts = {k: _text(top[k], f"{where}: {k}") for k in ("paper", "title", "reference")}
    headline = tuple(
        _headline(entry, tables, f"{where}: headline[{index}]")
        for index, entry in enumerate(_list(top.get("headline", []), f"{where}: headline"))
    )
    claim = _text(top.get("claim", ""), f"{where}: claim")
    return Paper(**texts, tables=tables, claim=claim, headline=headline)


_TOP_OPTIONAL = ("claim", "headline")


def _table(name: str, raw: Any, where: str) -> ReportedTable:
    table = _mapping(raw, where)
    _keys(table, where, required=("title", "protocol", "columns", "rows"))
    columns = {
        key: _column(str(key), column, f"{where}, column {key}")
        for key, column in _mapping(table["columns"], f"{where}: columns").items()
    }
    rows = {
        key: _row(str(key), row, columns, f"{where}, row {key}")
        for key, row in _mapping(table["rows"], f"{where}: rows").items()
    }
    if not columns or not rows:
        raise SchemaError(f"{where}: a table has at least one column and one row")
    title, protocol = (_text(table[k], f"{where}: {k}") for k in ("title", "protocol"))
    return ReportedTable(name, title, protocol, columns, rows)


def _column(name: str, raw: Any, where: str) -> Column:
    column = _mapping(raw, where)
    _keys(column, where, required=("label",), optional=("unit", "digits", "better"))
    digits = column.get("digits", 2)
    if isinstance(digits, bool) or not isinstance(digits, int) or digits < 0:
        raise SchemaError(f"{where}: digits is {digits!r}, expected a whole number from 0 on")
    better = column.get("better", "")
    if better:
        _one_of(better, DIRECTIONS, f"{where}: better")
    label, unit = (_text(column.get(k, ""), f"{where}: {k}") for k in ("label", "unit"))
    return Column(name, label, unit, digits, better)


def _row(name: str, raw: Any, columns: Collection[str], where: str) -> Row:
    row = _mapping(raw, where)
    _keys(row, where, required=("label",), optional=("scale", "needs", "cells"))
    scale = row.get("scale", "")
    if scale:
        _one_of(scale, SCALES, f"{where}: scale")
    needs = _text(row.get("needs", ""), f"{where}: needs")
    if not scale and not needs:
        raise SchemaError(
            f"{where}: give `scale: exact` or `scale: small` if a recipe computes it, else `needs`"
        )
    cells = {}
    for key, cell in _mapping(row.get("cells", {}), f"{where}: cells").items():
        _one_of(key, columns, f"{where}: column")
        cells[key] = _cell(cell, f"{where}, column {key}")
        if cells[key].expected is not None and scale != "exact":
            raise SchemaError(f"{where}, column {key}: only a row of scale exact has `expected`")
    return Row(name, _text(row["label"], f"{where}: label"), scale, needs, cells)


def _cell(raw: Any, where: str) -> Cell:
    cell = _mapping(raw, where)
    _keys(cell, where, optional=("reported", "expected"))
    reported = tuple(
        _reported(entry, f"{where}: reported[{index}]")
        for index, entry in enumerate(_list(cell.get("reported", []), f"{where}: reported"))
    )
    expected = None
    if "expected" in cell:
        entry = _mapping(cell["expected"], f"{where}: expected")
        _keys(entry, f"{where}: expected", required=("value", "tolerance", "why"))
        expected = Expected(
            _number(entry["value"], f"{where}: expected value"),
            _tolerance(entry["tolerance"], f"{where}: expected tolerance"),
            _text(entry["why"], f"{where}: expected why"),
        )
    return Cell(reported, expected)


def _reported(raw: Any, where: str) -> Reported:
    entry = _mapping(raw, where)
    _keys(entry, where, required=("value", "origin"), optional=("note", "tolerance"))
    _one_of(entry["origin"], ORIGINS, f"{where}: origin")
    tolerance = None
    if "tolerance" in entry:
        if entry["origin"] == RECALLED:
            raise SchemaError(f"{where}: a recalled number is never compared; drop its tolerance")
        tolerance = _tolerance(entry["tolerance"], f"{where}: tolerance")
    note = _text(entry.get("note", ""), f"{where}: note")
    return Reported(_number(entry["value"], f"{where}: value"), entry["origin"], note, tolerance)


def _headline(raw: Any, tables: Mapping[str, ReportedTable], where: str) -> Headline:
    entry = _mapping(raw, where)
    _keys(entry, where, required=("table", "row", "column"))
    _one_of(entry["table"], tables, f"{where}: table")
    table = tables[entry["table"]]
    _one_of(entry["row"], table.rows, f"{where}: row")
    _one_of(entry["column"], table.columns, f"{where}: column")
    return Headline(entry["table"], entry["row"], entry["column"])


def nearest(word: object, known: Collection[str]) -> str:
    """End an error message: ``did you mean 'row1'?``, or the list of what is known."""
    close = difflib.get_close_matches(str(word), known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + (", ".join(map(str, known)) or "none")


def _keys(
    mapping: Mapping[str, Any],
    where: str,
    *,
    required: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
) -> None:
    known = (*required, *optional)
    for key in mapping:
        if key not in known:
            raise SchemaError(f"{where}: unknown key {key!r}; {nearest(key, known)}")
    for key in required:
        if key not in mapping:
            raise SchemaError(f"{where}: {key!r} is missing")


def _one_of(value: object, known: Collection[str], where: str) -> None:
    if value not in list(known):
        raise SchemaError(f"{where} {value!r} is unknown; {nearest(value, known)}")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SchemaError(f"{where}: expected a mapping, found {value!r}")
    for key in value:
        if not isinstance(key, str):
            raise SchemaError(f"{where}: the key {key!r} is not text; put it in quotes")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise SchemaError(f"{where}: expected a list, found {value!r}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise SchemaError(f"{where}: expected text, found {value!r}; put it in quotes")
    return " ".join(value.split())


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        hint = " (YAML reads 1e-4 as text: write 1.0e-4)" if isinstance(value, str) else ""
        raise SchemaError(f"{where}: expected a number, found {value!r}{hint}")
    return value


def _tolerance(value: Any, where: str) -> float:
    number = _number(value, where)
    if number < 0:
        raise SchemaError(f"{where}: {value!r} is negative")
    return number


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which keeps the last of two equal keys; here the second is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} stands twice", key_node.start_mark
                )
            if isinstance(key_node, yaml.ScalarNode):
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)
