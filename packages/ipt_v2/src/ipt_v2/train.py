"""Training: ``accelerate launch -m ipt_v2.train --config gaussian_colour_25 --photos DFWB``.

The loop is shared with LIPT: ``papers_shared.restoration.train``.
"""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from ipt_v2.cli import main as command_line

    raise SystemExit(command_line(["train", *sys.argv[1:]]))

from ipt_v2.config import TrainConfig
from ipt_v2.family import FAMILY
from papers_shared.restoration.train import Trained, train_restorer


def train(config: TrainConfig) -> Trained:
    """Train a network; see ``TrainConfig``. Resumes from ``config.output``."""
    return train_restorer(config, FAMILY)


def main(config: TrainConfig) -> int:
    """Train, and say where the network lies."""
    trained = train(config)
    print(f"{trained.path}: {trained.model.task}, loss {trained.loss:.4g}")
    return 0
