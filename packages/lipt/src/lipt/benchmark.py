"""``lipt benchmark --variant tiny_x4 --unmerged``."""

from __future__ import annotations

from lipt.config import BenchmarkConfig
from lipt.family import FAMILY
from papers_shared.restoration.benchmark import run_benchmark


def main(config: BenchmarkConfig) -> int:
    """Time a network on this machine."""
    return run_benchmark(config, FAMILY)
