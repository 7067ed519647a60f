"""Scores of a network on pairs: ``python -m tad_sr.eval --data FOLDER --weights TAD-SR.pth``."""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from tad_sr.cli import main as command_line

    raise SystemExit(command_line(["eval", *sys.argv[1:]]))

from papers_shared.diffusion.evaluate import run_eval
from tad_sr.config import EvalConfig
from tad_sr.family import FAMILY


def main(config: EvalConfig) -> int:
    """Print (and with ``output`` write) the scores."""
    return run_eval(config, FAMILY)
