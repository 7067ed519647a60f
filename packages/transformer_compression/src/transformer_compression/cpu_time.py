"""Time that a process spends on a CPU: on one thread the latency of an idle core.

On a machine shared with other work the wall clock measures that work too, and long runs more than
short ones.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread within the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def cpu_seconds(fn: Callable[[], Any], *, warmup: int = 1, repeats: int = 5) -> float:
    """Median CPU time of a call, all threads of the process together."""
    for _ in range(warmup):
        fn()
    return statistics.median(_timed(fn) for _ in range(repeats))


@dataclass(frozen=True)
class CpuComparison:
    """Median CPU seconds, and the baseline's over this function's (median over the rounds)."""

    seconds: float
    speedup: float


def compare_cpu_seconds(
    functions: Mapping[str, Callable[[], Any]], *, baseline: str, warmup: int = 1, rounds: int = 5
) -> dict[str, CpuComparison]:
    """Several functions in turns, each round beginning with another one."""
    for fn in functions.values():
        for _ in range(warmup):
            fn()
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            times[name].append(_timed(functions[name]))
    base = times[baseline]
    return {
        name: CpuComparison(
            statistics.median(own),
            statistics.median(b / t for b, t in zip(base, own, strict=True)),
        )
        for name, own in times.items()
    }


def _timed(fn: Callable[[], Any]) -> float:
    start = time.process_time()
    fn()
    return max(time.process_time() - start, 1e-9)
