"""Scores of a network: ``python -m ipt_v2.eval --weights FILE --data kodak24 urban100=FOLDER``."""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from ipt_v2.cli import main as command_line

    raise SystemExit(command_line(["eval", *sys.argv[1:]]))

from ipt_v2.config import RegimeEvalConfig
from ipt_v2.family import in_regime
from papers_shared.restoration.evaluate import run_eval


def main(config: RegimeEvalConfig) -> int:
    """Print (and with ``output`` write) the scores; the regime belongs to every one of them."""
    tiles = "whole pictures" if config.tile is None else f"tiles of {config.tile}"
    print(f"regime {config.regime}, {tiles}", flush=True)
    return run_eval(config, in_regime(config.regime))
