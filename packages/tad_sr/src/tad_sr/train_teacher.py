"""A ResShift teacher: ``accelerate launch -m tad_sr.train_teacher --config teacher --photos ...``.

The loop is shared with DiT-SR: ``papers_shared.diffusion.train_denoiser``.
"""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from tad_sr.cli import main as command_line

    raise SystemExit(command_line(["train-teacher", *sys.argv[1:]]))

from papers_shared.diffusion.scheduler import ResShiftScheduler
from papers_shared.diffusion.train_denoiser import Trained, train_denoiser
from tad_sr.config import TeacherConfig
from tad_sr.family import FAMILY, SCHEDULERS
from tad_sr.model import VARIANTS


def train(config: TeacherConfig) -> Trained:
    """Train a teacher; see ``TeacherConfig``. Resumes from ``config.output``.

    Raises:
        ValueError: the configuration does not fit itself, the data or an earlier run.
        FileNotFoundError: photos or autoencoder are not here; the message says how to get them.
    """
    if config.variant not in VARIANTS:
        raise ValueError(f"no variant {config.variant!r}; known: {', '.join(VARIANTS)}")
    options = {**SCHEDULERS[config.variant], "prediction_type": config.prediction}
    options["timestep_spacing"] = "leading"  # a teacher goes through the whole chain
    scheduler = ResShiftScheduler(**options)
    return train_denoiser(config, FAMILY, VARIANTS[config.variant], scheduler)


def main(config: TeacherConfig) -> int:
    """Train, and say where the network lies."""
    print(f"{train(config).path}: distil it with tad-sr train --teacher")
    return 0
