"""Runs recipes within a budget and judges what they computed."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Protocol

from papers_shared import assets
from papers_shared.tables import budget as budgets
from papers_shared.tables import provenance
from papers_shared.tables.claims import judge_claims
from papers_shared.tables.entries import Entry, belongs, how_to_run
from papers_shared.tables.recipe import Context, Needs, Recipe
from papers_shared.tables.render import number
from papers_shared.tables.reproduced import (
    Cells,
    RecipeError,
    RowResult,
    State,
    TableResult,
    as_json,
    command,
    run_recipe,
)
from papers_shared.tables.schema import Cell, ReportedTable, Row


@dataclass(frozen=True)
class Job:
    """A row that has a recipe."""

    paper: str
    table: str
    row: str


class Progress(Protocol):
    """Who is told about long work."""

    def start(self, job: Job, recipe: Recipe) -> None: ...
    def step(self, done: int, total: int, what: str) -> None: ...
    def end(self, result: RowResult) -> None: ...


class Silent:
    """Tells nobody."""

    def start(self, job: Job, recipe: Recipe) -> None: ...
    def step(self, done: int, total: int, what: str) -> None: ...
    def end(self, result: RowResult) -> None: ...


def reproduce(
    entries: Sequence[Entry],
    *,
    budget: float,
    tables: Sequence[str] = (),
    seed: int = 0,
    device: str = "cpu",
    record: bool = False,
    progress: Progress | None = None,
    day: date | None = None,
) -> Iterator[TableResult]:
    """Run what the budget allows and give one result a table, as soon as it is complete.

    Args:
        entries: the papers, with their recipes.
        budget: seconds in all.
        tables: names of the tables wanted, ``table5`` with all its parts; none means all.
        seed: handed to every recipe.
        device: handed to every recipe, as torch names it.
        record: whether rows that were computed and passed are committed to the package.
        progress: told about every row that is run.
        day: turns the sample of rows that do not fit into the budget; default today.
    """
    wanted = {
        Job(entry.name, table, row): (entry, recipe)
        for entry in entries
        for table in entry.reported.tables
        if not tables or belongs(table, tables)
        for row, recipe in entry.recipes(table).items()
    }
    found: dict[Job, Mapping[str, assets.Resolved]] = {}
    troubles: dict[Job, RowResult] = {}

    def runnable(job: Job) -> bool:
        try:
            found[job] = find_needs(wanted[job][1])
        except FileNotFoundError as missing:
            troubles[job] = RowResult(State.NEEDS, message=_one_line(missing))
        except ValueError as corrupt:
            troubles[job] = RowResult(State.FAILED, message=_one_line(corrupt))
        return job in found

    seconds = {job: recipe.seconds for job, (_, recipe) in wanted.items()}
    day = day or datetime.now(UTC).date()
    chosen = budgets.choose(seconds, budget, day=day, runnable=runnable)
    progress = progress or Silent()

    def run(job: Job) -> RowResult:
        entry, recipe = wanted[job]
        progress.start(job, recipe)
        result = run_row(
            entry, job, recipe, seed=seed, device=device, found=found[job], step=progress.step
        )
        progress.end(result)
        return result

    for entry in entries:
        for name, table in entry.reported.tables.items():
            if tables and not belongs(name, tables):
                continue
            committed = entry.committed(name)
            rows, failures = {}, []
            for row in table.rows.values():
                job = Job(entry.name, name, row.name)
                if job in wanted and job not in chosen and not committed.get(row.name):
                    runnable(job)  # what it needs says more than that it was not in the budget
                fresh = run(job) if job in chosen else troubles.get(job)
                result = settle(entry, name, row, fresh, committed.get(row.name, {}))
                result = replace(result, off=out_of_tolerance(table, row, result.cells))
                strict = needs_fail() and job in wanted and not brought_by_users(wanted[job][1])
                problems = judge(row, result, tried=fresh, needs_fail=strict)
                if record and not problems and result.state in (State.EXACT, State.SMALL):
                    entry.record(name, row.name, result.cells)
                rows[row.name] = result
                failures += [f"{entry.name}, {name}, row {row.name}: {p}" for p in problems]
            claims, broken = judge_claims(entry, name, rows)
            failures += [f"{entry.name}, {name}: {line}" for line in broken]
            yield TableResult(entry.name, name, rows, claims, tuple(failures))


def pick_device(wanted: str) -> str:
    """``auto`` -> ``cuda`` where there is one, else ``cpu``.

    Raises:
        ValueError: there is no such device here.
    """
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device {wanted!r} cannot be used here ({reason}); try cpu") from None
    return wanted


def find_needs(recipe: Recipe) -> dict[str, assets.Resolved]:
    """The assets of a recipe on this machine; nothing is downloaded.

    Raises:
        FileNotFoundError: an asset or a module is missing; the message says how to get it.
        ValueError: a file's checksum is wrong, or there is no such asset.
    """
    for module in recipe.requires:
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            raise FileNotFoundError(f"the Python module {module} is missing: pip install {module}")
    return {name: assets.fetch(name, download=False) for name in recipe.assets}


def run_row(
    entry: Entry,
    job: Job,
    recipe: Recipe,
    *,
    seed: int,
    device: str,
    found: Mapping[str, assets.Resolved],
    step: Callable[[int, int, str], None],
) -> RowResult:
    """Run one recipe; what it raises becomes the row's message."""
    settings: Mapping[str, Any] = as_json(recipe.settings)
    start = time.perf_counter()

    def source() -> provenance.Provenance:
        return provenance.collect(
            entry.module,
            command=f"{command(job.paper, job.table)} --seed {seed} --device {device}",
            seed=seed,
            device=device,
            assets=found,
            seconds=time.perf_counter() - start,
            settings=settings,
            libraries=recipe.requires,
        )

    with tempfile.TemporaryDirectory(prefix="papers-") as workdir:
        context = Context(device, seed, Path(workdir), settings, found, step)
        columns = entry.reported.tables[job.table].columns
        try:
            cells = run_recipe(recipe, context, columns=columns, provenance=source)
        except (assets.AssetMissing, Needs) as missing:
            return RowResult(State.NEEDS, message=_one_line(missing))
        except RecipeError as error:
            return RowResult(State.FAILED, message=_one_line(error))
        except Exception as error:  # one recipe's error must not stop the others
            traceback.print_exc()
            return RowResult(State.FAILED, message=f"{type(error).__name__}: {_one_line(error)}")
    return RowResult(State(recipe.scale), cells)


def settle(
    entry: Entry, table: str, row: Row, fresh: RowResult | None, committed: Cells
) -> RowResult:
    """What is shown of a row: what was computed now, else what was recorded, else why not.

    Args:
        entry: the paper.
        table: the table's name.
        row: the row of reported.yaml.
        fresh: what came of running it or of looking for its needs; None when not tried.
        committed: the values of the committed result, if any.
    """
    recipe = entry.recipes(table).get(row.name)
    if recipe is None:
        return RowResult(State.NEEDS, message=row.needs)
    if fresh is not None and fresh.cells:
        return RowResult(fresh.state, fresh.cells, row.needs, committed)
    if fresh is not None and fresh.state is State.FAILED:
        return fresh
    why = fresh.message if fresh is not None else ""
    if committed:
        first = next(iter(committed.values()))
        if (first.scale, first.provenance.settings) == (recipe.scale, as_json(recipe.settings)):
            parts = (f"not computed again: {why}" if why else "", row.needs)
            return RowResult(State.RECORDED, committed, "; ".join(filter(None, parts)))
        stale = "the committed result was made with other settings, so it is not shown"
        why = f"{why} ({stale})" if why else stale
    if fresh is not None:
        return RowResult(State.NEEDS, message="; ".join(filter(None, (why, row.needs))))
    run = f"not in the budget; {how_to_run(entry, table)}"
    return RowResult(State.SKIPPED, message=f"{run}; {why}" if why else run)


def judge(row: Row, result: RowResult, *, tried: RowResult | None, needs_fail: bool) -> list[str]:
    """What of a row has to fail the command: one line each.

    Args:
        row: of reported.yaml.
        result: what is shown of it.
        tried: what came of running it or of looking for its needs; None when not tried.
        needs_fail: whether an exact row that cannot run for lack of data fails.
    """
    if result.state is State.FAILED:
        return [result.message]
    if tried is not None and tried.state is State.NEEDS and row.scale == "exact" and needs_fail:
        return [f"an exact row could not be computed: {tried.message}"]
    return [f"column {column}: {how}" for column, how in result.off.items()]


def out_of_tolerance(table: ReportedTable, row: Row, cells: Cells) -> dict[str, str]:
    """Which exact values have left their guard's tolerance (or have no guard), and how.

    Args:
        table: of reported.yaml.
        row: one of its rows.
        cells: the row's values, computed now or recorded.
    """
    off: dict[str, str] = {}
    for column, cell in cells.items():
        if cell.scale != "exact":
            continue
        place = row.cells.get(column, Cell())
        if not place.guards:
            off[column] = (
                f"the exact value {cell.value} has no guard; give the cell `expected: {{value, "
                f"tolerance, why}}`, or one of its reported numbers a `tolerance`"
            )
        for guard in place.guards:
            # The last term is the rounding of the subtraction: 88.05 - 88.0 > 0.05 in binary.
            if abs(cell.value - guard.value) > (guard.tolerance or 0) + 1e-12 * abs(guard.value):
                kind = "expected" if guard is place.expected else "reported"
                value = number(cell.value, table.columns[column].digits + 2)
                off[column] = f"{value} is not within {guard.tolerance} of the {kind} {guard.value}"
    return off


def needs_fail() -> bool:
    """In CI with a mirror all data is at hand: an exact row must not end as ``needs``."""
    return os.environ.get("CI", "") not in ("", "0", "false") and bool(
        os.environ.get(assets.MIRROR_VARIABLE)
    )


def brought_by_users(recipe: Recipe) -> bool:
    """Whether it takes a file without a published checksum, which no mirror has to hold."""
    catalogue = assets.catalogue()
    return any(
        all(file.unverified for form in catalogue[name].forms for file in form.files)
        for name in recipe.assets
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
