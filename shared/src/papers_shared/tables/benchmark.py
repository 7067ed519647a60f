"""Where a benchmark's figures go, with the machine that they were measured on."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from papers_shared.tables.provenance import processor
from papers_shared.workspace import workspace_root


def machine(*, distributions: Sequence[str]) -> dict[str, Any]:
    """Processor, cores, load, system, Python, the named distributions' versions, and the date."""
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in distributions},
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def timed(
    functions: Mapping[str, Callable[[], Any]], *, baseline: str, rounds: int, warmup: int = 1
) -> dict[str, Any]:
    """Candidates in turns, as a benchmark's file holds them.

    Args:
        functions: name -> what is timed.
        baseline: name of the one that the others are compared with.
        rounds: in which each candidate runs once.
        warmup: rounds before.

    Returns:
        threads, rounds, median ``milliseconds`` by name, and ``times_faster`` than the baseline:
        median, ``_p10`` and ``_p90`` of the ratios within a round.
    """
    import torch

    from papers_shared.complexity import compare_latency

    found = compare_latency(functions, baseline=baseline, warmup=warmup, rounds=rounds)
    return {
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "milliseconds": {name: 1e3 * c.latency.median for name, c in found.items()},
        "times_faster": {name: c.speedup for name, c in found.items()},
        "times_faster_p10": {name: c.p10 for name, c in found.items()},
        "times_faster_p90": {name: c.p90 for name, c in found.items()},
    }


def benchmark_file(name: str) -> Path:
    """``results/bench/<name>.json`` at the workspace's root.

    Raises:
        FileNotFoundError: there is no checkout around the working folder or this library.
    """
    root = workspace_root()
    if root is None:
        raise FileNotFoundError("run this inside the checkout, whose results/ it writes to")
    return root / "results" / "bench" / f"{name}.json"


def save_benchmark(name: str, results: Mapping[str, Any], *, distributions: Sequence[str]) -> Path:
    """Write the benchmark's file.

    Args:
        name: of the benchmark.
        results: what was measured; ``machine`` is added.
        distributions: whose versions matter.

    Returns:
        the file written, whose name is also printed.

    Raises:
        FileNotFoundError: see ``benchmark_file``.
    """
    path = benchmark_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine(distributions=distributions), **results}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written to results/bench/{path.name}")
    return path
