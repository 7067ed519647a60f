"""Run by test_processes.py in two processes whose validations disagree: DATA OUTPUT."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from genimage import train as training
from genimage.config import TrainConfig
from genimage.metrics import Scores, score
from papers_shared.checkpoints import save_state_dict

rank = int(os.environ["RANK"])
accuracy = 50.0


def validate(*_: object) -> Scores:
    """The first process finds no progress, the second some after each epoch."""
    global accuracy
    accuracy += rank
    return replace(score([0.9, 0.1], [1, 0]), balanced=accuracy)


if __name__ == "__main__":
    data, output = map(Path, sys.argv[1:])
    training.validate = validate  # type: ignore[assignment]
    config = TrainConfig(
        data=data,
        output=output / "run",
        detector="mini_cnnspot",
        optimizer="adam",
        schedule="plateau",
        lr=1e-2,
        epochs=10,
        batch_size=24,
        workers=0,
    )
    network = training.train(config).detector.network
    save_state_dict(dict(network.named_parameters()), output / f"rank{rank}.safetensors")
