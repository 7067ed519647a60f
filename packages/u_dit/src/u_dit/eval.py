"""Scores: ``python -m u_dit.eval --samples samples --reference photos``."""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from u_dit.cli import main as command_line

    raise SystemExit(command_line(["eval", *sys.argv[1:]]))

from papers_shared.diffusion.class_eval import evaluate
from u_dit.config import EvalConfig
from u_dit.family import FAMILY


def main(config: EvalConfig) -> int:
    """Print (and with ``output`` write) the scores."""
    return evaluate(config, FAMILY)
