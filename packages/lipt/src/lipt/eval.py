"""Scores of a network: ``python -m lipt.eval --weights FILE --data set5 urban100=FOLDER``."""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from lipt.cli import main as command_line

    raise SystemExit(command_line(["eval", *sys.argv[1:]]))

from dataclasses import replace

from lipt.config import EvalConfig
from lipt.family import FAMILY
from papers_shared.restoration.evaluate import run_eval


def main(config: EvalConfig) -> int:
    """Print (and with ``output`` write) the scores; super-resolution where nothing is named."""
    if not config.weights and config.task is None:
        config = replace(config, task="sr")
    return run_eval(config, FAMILY)
