"""The command ``reproduce`` of a paper's console script. No torch: ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from papers_shared.cli import option


@dataclass(frozen=True)
class ReproduceConfig:
    """Compute what this machine can of the paper's tables, beside the reported numbers."""

    table: list[str] = option([], "only these tables, by their names in reported.yaml")
    budget: str = option("all", "what may be run again: a time such as 10m, or all")
    output: Path | None = option(None, "folder of the results (default: results/)")


def run_reproduce(config: ReproduceConfig, paper: str) -> int:
    """The tables' own command, for one paper.

    Args:
        paper: name of the package.

    Returns:
        The exit status of ``python -m papers_shared.tables reproduce``.
    """
    from papers_shared.tables.__main__ import main

    arguments = ["reproduce", "--paper", paper, "--budget", config.budget]
    arguments += ["--table", *config.table] if config.table else []
    arguments += ["--out", str(config.output)] if config.output else []
    return main(arguments)
