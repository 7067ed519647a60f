"""What is run again within a budget: the cheapest recipes, then a sample that changes daily."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Mapping
from datetime import date
from typing import TypeVar

DEFAULT = "10m"
SAMPLE_SHARE = 1 / 3

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
_Job = TypeVar("_Job", bound=Hashable)


def parse(text: str) -> float:
    """``15m``, ``900s``, ``2h``, ``900``, ``0`` or ``all`` -> seconds.

    Raises:
        ValueError: it is none of these.
    """
    if text == "all":
        return math.inf
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None:
        raise ValueError(f"budget {text!r} is not understood; write 15m, 900s, 2h, 0 or all")
    return float(match[1]) * _UNITS[match[2]]


def choose(
    seconds: Mapping[_Job, float],
    budget: float,
    *,
    day: date,
    runnable: Callable[[_Job], bool] = lambda job: True,
) -> set[_Job]:
    """Pick the jobs to run.

    The cheapest that fit into two thirds of the budget are always taken. The rest of it goes to
    the others in an order that starts at another of them each day, so that in time every job
    that fits at all is run.

    Args:
        seconds: job -> how long it takes.
        budget: seconds in all.
        day: turns the sample.
        runnable: asked of a job only when it would fit; one that is not takes nothing.
    """
    chosen: set[_Job] = set()
    if budget <= 0:
        return chosen
    used = 0.0
    always = budget if sum(seconds.values()) <= budget else budget * (1 - SAMPLE_SHARE)
    rest = []
    for job in sorted(seconds, key=lambda job: seconds[job]):
        if used + seconds[job] > always:
            rest.append(job)
        elif runnable(job):
            chosen.add(job)
            used += seconds[job]
    start = day.toordinal() % len(rest) if rest else 0
    for job in rest[start:] + rest[:start]:
        if used + seconds[job] <= budget and runnable(job):
            chosen.add(job)
            used += seconds[job]
    return chosen
