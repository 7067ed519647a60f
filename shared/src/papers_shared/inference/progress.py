"""How far a photo is: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any


class TileProgress:
    """Shows (done, in all) on stderr while it is entered.

    Args:
        name: of the photo.
        bar: draw a bar; by default on a terminal.
        every: seconds between lines where there is no bar.
    """

    def __init__(self, name: str, *, bar: bool | None = None, every: float = 10.0) -> None:
        self.name, self.every = name, every
        self.bar = sys.stderr.isatty() if bar is None else bar
        self.started = self.shown = time.monotonic()
        self._progress: Any = None
        self._task: Any = None

    def __enter__(self) -> TileProgress:
        if self.bar:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                Progress,
                TaskProgressColumn,
                TextColumn,
                TimeRemainingColumn,
            )

            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._progress.add_task(self.name, total=None)
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total)
            return
        now = time.monotonic()
        if now - self.shown >= self.every and done < total:
            self.shown = now
            left = (now - self.started) / done * (total - done)
            print(
                f"{self.name}: {done / total:.0%}, about {duration(left)} left",
                file=sys.stderr,
                flush=True,
            )


def duration(seconds: float) -> str:
    """A time for people: '45 s', '12 min', '2.5 h'."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"
