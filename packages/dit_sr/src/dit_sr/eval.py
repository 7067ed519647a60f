"""Scores of a network on pairs: ``python -m dit_sr.eval --data FOLDER --weights realsr.pth``."""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from dit_sr.cli import main as command_line

    raise SystemExit(command_line(["eval", *sys.argv[1:]]))

from dit_sr.config import EvalConfig
from dit_sr.family import FAMILY
from papers_shared.diffusion.evaluate import run_eval


def main(config: EvalConfig) -> int:
    """Print (and with ``output`` write) the scores."""
    return run_eval(config, FAMILY)
