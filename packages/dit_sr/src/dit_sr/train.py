"""Training: ``accelerate launch -m dit_sr.train --config realsr --photos LSDIR``.

The loop is ResShift's, shared with TAD-SR's teacher: ``papers_shared.diffusion.train_denoiser``.
"""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from dit_sr.cli import main as command_line

    raise SystemExit(command_line(["train", *sys.argv[1:]]))

from dataclasses import replace

from dit_sr.config import TrainConfig
from dit_sr.family import FAMILY, SCHEDULERS
from dit_sr.model import VARIANTS, Config
from papers_shared.diffusion.scheduler import ResShiftScheduler
from papers_shared.diffusion.train_denoiser import Trained, train_denoiser


def network_config(config: TrainConfig) -> Config:
    """The network of a run: its variant, with what the run changes of it.

    Raises:
        ValueError: there is no such variant.
    """
    if config.variant not in VARIANTS:
        raise ValueError(f"no variant {config.variant!r}; known: {', '.join(VARIANTS)}")
    network = VARIANTS[config.variant]
    return replace(network, conditioning=config.conditioning, mask=config.mask)


def train(config: TrainConfig, *, network: Config | None = None) -> Trained:
    """Train a network; see ``TrainConfig``. Resumes from ``config.output``.

    Args:
        config: the run.
        network: another network than the variant's, for ablations.

    Raises:
        ValueError: the configuration does not fit itself, the data or an earlier run.
        FileNotFoundError: photos or autoencoder are not here; the message says how to get them.
    """
    named = network_config(config)
    options = {**SCHEDULERS[config.variant], "prediction_type": config.prediction}
    return train_denoiser(config, FAMILY, network or named, ResShiftScheduler(**options))


def main(config: TrainConfig) -> int:
    """Train, and say where the network lies."""
    print(f"{train(config).path}: use it with dit-sr upscale --weights")
    return 0
