"""``ipt-v2 benchmark --variant t --size 256 256 --unmerged``."""

from __future__ import annotations

from ipt_v2.config import BenchmarkConfig
from ipt_v2.family import FAMILY
from papers_shared.restoration.benchmark import run_benchmark


def main(config: BenchmarkConfig) -> int:
    """Time a network on this machine."""
    return run_benchmark(config, FAMILY)
