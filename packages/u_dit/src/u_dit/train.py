"""Training: ``accelerate launch -m u_dit.train --data cifar10 --variant U-DiT-S``."""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from u_dit.cli import main as command_line

    raise SystemExit(command_line(["train", *sys.argv[1:]]))

from papers_shared.diffusion.class_train import Trained, train_and_tell, train_network
from u_dit.config import TrainConfig
from u_dit.family import FAMILY


def train(config: TrainConfig, network: object = None) -> Trained:
    """Train a network; see ``papers_shared.diffusion.class_train.train_network``."""
    return train_network(config, FAMILY, network=network)


def main(config: TrainConfig) -> int:
    """Train, and say where the network lies."""
    return train_and_tell(config, FAMILY)
