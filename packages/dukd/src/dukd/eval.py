"""Scores of a network: ``python -m dukd.eval --weights FILE --data set5 urban100=FOLDER``."""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from dukd.cli import main as command_line

    raise SystemExit(command_line(["eval", *sys.argv[1:]]))

from dataclasses import replace

from dukd.config import EvalConfig
from dukd.family import FAMILY
from papers_shared.restoration.evaluate import run_eval


def main(config: EvalConfig) -> int:
    """Print (and with ``output`` write) PSNR and SSIM on Y."""
    return run_eval(replace(config, task="sr"), FAMILY)
