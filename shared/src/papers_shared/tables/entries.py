"""The installed papers as the tables see them: reported numbers, recipes, committed results."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from papers_shared import workspace
from papers_shared.tables import schema
from papers_shared.tables.recipe import Recipe, Table
from papers_shared.tables.reproduced import Cells, as_json, command, read_rows, write_rows

EMPTY = Table()


@dataclass(frozen=True)
class Entry:
    """One paper.

    Attributes:
        name: what ``--paper`` takes.
        module: the import name of its package.
        reported: its reported.yaml.
        tables: its recipes; empty until ``with_recipes`` was called.
        draw: called with a folder of results and the names of tables (none: all), draws what these
            hold and returns the pictures: ``draw`` of the package's reproduce.py, if it has one.
    """

    name: str
    module: str
    reported: schema.Paper
    tables: Mapping[str, Table] = field(default_factory=dict)
    draw: Callable[[Path, Sequence[str]], list[Path]] = lambda folder, tables: []

    def recipes(self, table: str) -> Mapping[str, Recipe]:
        return self.tables.get(table, EMPTY).recipes

    def committed(self, table: str) -> dict[str, Cells]:
        """The computed rows of ``results/<table>.json`` in the package.

        Raises:
            ValueError: the file was edited.
        """
        try:
            folder = workspace.package_file(self.module, "results")
        except FileNotFoundError:
            return {}
        return read_rows(folder / f"{table}.json", self.name, table)

    def record(self, table: str, row: str, cells: Cells) -> Path:
        """Commit a computed row to the package's source folder; the table's other rows stay."""
        path = self.source_folder() / "results" / f"{table}.json"
        rows = read_rows(path, self.name, table) | {row: cells}
        order = self.reported.tables[table].rows
        write_rows(path, self.name, table, {name: rows[name] for name in order if name in rows})
        return path

    def source_folder(self) -> Path:
        """The package's folder in a checkout.

        Raises:
            ValueError: it is installed from a wheel, which has none.
        """
        folder = workspace.package_folder(self.module).parents[1]
        if not (folder / "pyproject.toml").is_file():
            raise ValueError(
                f"{self.module} is not installed from a checkout, so there is no results/ folder "
                f"to record into; pip install -e packages/{self.name}"
            )
        return folder


def load_entries(names: Sequence[str] = (), tables: Sequence[str] = ()) -> list[Entry]:
    """The reported numbers of the installed papers, their recipes not yet imported.

    Args:
        names: papers; none means all.
        tables: tables that at least one of these papers must have.

    Raises:
        ValueError: there is no such paper or table, or a reported.yaml is not valid.
    """
    installed = workspace.papers()
    for name in names:
        if name not in installed:
            raise ValueError(
                f"no installed paper is called {name!r}; {schema.nearest(name, installed)}"
            )
    entries = []
    for name in names or installed:
        module = installed[name]
        reported = schema.load(workspace.package_file(module, "reported.yaml"))
        if reported.paper != module:
            raise schema.SchemaError(
                f"reported.yaml of {module}: paper is {reported.paper!r}, expected {module!r}"
            )
        entries.append(Entry(name, module, reported))
    known = [table for entry in entries for table in entry.reported.tables]
    for table in tables:
        if not any(belongs(name, [table]) for name in known):
            raise ValueError(f"no table is called {table!r}; {schema.nearest(table, known)}")
    return entries


def belongs(table: str, wanted: Sequence[str]) -> bool:
    """Whether a table is wanted: by its name, or as a part (``table5`` names ``table5_sets``)."""
    return any(table == name or table.startswith(f"{name}_") for name in wanted)


def with_recipes(entry: Entry) -> Entry:
    """Import ``<package>.reproduce`` (and with it torch) and hold it against reported.yaml.

    Raises:
        ValueError: a recipe has no row, a row has neither recipe nor ``needs``, or scales differ.
    """
    if importlib.util.find_spec(f"{entry.module}.reproduce") is None:
        raise ValueError(f"{entry.module} has no module reproduce, which holds its TABLES")
    recipes = importlib.import_module(f"{entry.module}.reproduce")
    check_recipes(entry.reported, recipes.TABLES)
    draw = getattr(recipes, "draw", entry.draw)
    return replace(entry, tables=recipes.TABLES, draw=draw)


def check_recipes(reported: schema.Paper, tables: Mapping[str, Table]) -> None:
    """Hold recipes against reported.yaml.

    Raises:
        ValueError: a recipe has no row, a row has neither recipe nor ``needs``, or scales differ.
    """
    where = f"{reported.paper}.reproduce"
    for name, table in tables.items():
        if name not in reported.tables:
            hint = schema.nearest(name, reported.tables)
            raise ValueError(f"{where}: reported.yaml has no table {name!r}; {hint}")
        rows = reported.tables[name].rows
        for row, recipe in table.recipes.items():
            if row not in rows:
                hint = schema.nearest(row, rows)
                raise ValueError(f"{where}, {name}: reported.yaml has no row {row!r}; {hint}")
            if recipe.scale != rows[row].scale:
                raise ValueError(
                    f"{where}, {name}, row {row}: the recipe is {recipe.scale!r}, reported.yaml "
                    f"says scale {rows[row].scale!r}"
                )
            try:
                as_json(recipe.settings)
            except TypeError as error:
                raise ValueError(f"{where}, {name}, row {row}: settings: {error}") from None
    for name, reported_table in reported.tables.items():
        for line in reported_table.rows.values():
            if not line.needs and line.name not in tables.get(name, EMPTY).recipes:
                raise ValueError(
                    f"{where}, {name}, row {line.name}: no recipe; write one, or say in "
                    f"reported.yaml what it `needs`"
                )


def how_to_run(entry: Entry, table: str) -> str:
    """The command that computes every row of a table."""
    return f"{command(entry.name, table)} --budget all"
