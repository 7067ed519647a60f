"""Tells about long work on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from papers_shared.tables.recipe import Recipe
from papers_shared.tables.reproduced import RowResult
from papers_shared.tables.runner import Job

QUIET_SECONDS = 15.0  # between two lines where there is no terminal


class Bar:
    """A bar for the row that is being computed, on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[what]}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )

    def start(self, job: Job, recipe: Recipe) -> None:
        title = f"{job.paper} {job.table} {job.row} (about {recipe.seconds:,.0f} s)"
        self._task = self._bar.add_task(title, total=None, what="")
        self._bar.start()

    def step(self, done: int, total: int, what: str) -> None:
        self._bar.update(self._task, completed=done, total=total, what=what)

    def end(self, result: RowResult) -> None:
        self._bar.remove_task(self._task)
        self._bar.stop()


class Lines:
    """A line when a row starts and ends, and every ``QUIET_SECONDS`` in between."""

    def start(self, job: Job, recipe: Recipe) -> None:
        self._job, self._began, self._last = job, time.monotonic(), time.monotonic()
        self._print(f"computing, about {recipe.seconds:,.0f} s")

    def step(self, done: int, total: int, what: str) -> None:
        if time.monotonic() - self._last >= QUIET_SECONDS:
            self._last = time.monotonic()
            self._print(f"{what} {done}/{total}")

    def end(self, result: RowResult) -> None:
        self._print(f"{result.state} after {time.monotonic() - self._began:.1f} s")

    def _print(self, text: str) -> None:
        job = self._job
        print(f"[{job.paper} {job.table} {job.row}] {text}", file=sys.stderr, flush=True)


def reporter() -> Bar | Lines:
    """The one that suits stderr."""
    return Bar() if sys.stderr.isatty() else Lines()
