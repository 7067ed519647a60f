"""What a run tells: log.jsonl, optional tensorboard, a progress bar or a line now and then."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator


class Log:
    """``log.jsonl``, one object a line, and the same values to tensorboard.

    The lines hold no clock times: an interrupted and an uninterrupted run write the same file.

    Args:
        output: folder of the run.
        step: the run goes on after this step.
        size: bytes of the log at that step; what was written later is removed, so that no line
            stands twice.
        tensorboard: also write ``output/tensorboard``.
    """

    def __init__(
        self, output: Path, *, step: int = 0, size: int = 0, tensorboard: bool = False
    ) -> None:
        path = output / "log.jsonl"
        path.touch()
        os.truncate(path, min(size, path.stat().st_size))
        self._stream = path.open("ab")
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(output / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """One line; a value that is not finite becomes null, as JSON has no NaN."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        line = json.dumps({"step": step, "epoch": epoch, **finite}) + "\n"
        self._stream.write(line.encode())
        self._stream.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def size(self) -> int:
        """Bytes written so far, all of them on disk."""
        os.fsync(self._stream.fileno())
        return self._stream.tell()

    def close(self) -> None:
        """Close the files."""
        self._stream.close()
        if self._writer is not None:
            self._writer.close()


class Averages:
    """Means of logged values since the last line, kept on their device until they are asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Any, int]] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Count each value once."""
        for name, value in values.items():
            number = value.detach().double() if isinstance(value, Tensor) else value
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + number, count + 1)

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all processes (which must have added the same names); starts afresh."""
        if not self._sums:
            return {}
        numbers = [[float(total), count] for total, count in self._sums.values()]
        sums = torch.tensor(numbers, dtype=torch.float64, device=accelerator.device)
        sums = accelerator.reduce(sums, "sum")
        means = dict(zip(self._sums, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))
        self._sums = {}
        return means

    def state(self) -> dict[str, tuple[float, int]]:
        """What a checkpoint keeps."""
        return {name: (float(total), count) for name, (total, count) in self._sums.items()}

    def load(self, state: Mapping[str, tuple[float, int]]) -> None:
        """Go on from ``state()``."""
        self._sums = dict(state)


class Progress:
    """A bar on a terminal, else a line every ``interval`` seconds, on stderr.

    Args:
        first_step: where this process begins.
        total_steps: where it ends.
        interval: seconds between lines when stderr is not a terminal.
    """

    def __init__(self, first_step: int, total_steps: int, *, interval: float = 30.0) -> None:
        self._first, self._total, self._interval = first_step, total_steps, interval
        self._start = self._last = time.monotonic()
        self._values = ""
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = _terminal_bar()
            self._task = self._bar.add_task("", total=total_steps, completed=first_step, values="")
            self._bar.start()

    def show(self, values: Mapping[str, float]) -> None:
        """The values to stand beside the bar from now on."""
        self._values = "  ".join(f"{name} {value:.4g}" for name, value in values.items())

    def update(self, step: int, epoch: float) -> None:
        """``step`` updates are done."""
        if self._bar is not None:
            text = f"epoch {epoch:.1f}  {self._values}"
            self._bar.update(self._task, completed=step, values=text)
            return
        now = time.monotonic()
        if now - self._last >= self._interval:
            self._last = now
            rate = (step - self._first) / (now - self._start)
            left = (self._total - step) / rate / 60
            self.message(
                f"step {step}/{self._total}  epoch {epoch:.1f}  {self._values}  "
                f"{rate:.3g} steps/s, {left:.0f} min left"
            )

    def message(self, text: str) -> None:
        """A line of its own."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def _terminal_bar() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        MofNCompleteColumn(),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}", markup=False),
        console=Console(stderr=True),
    )
