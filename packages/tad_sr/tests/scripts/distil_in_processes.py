"""Distil a tiny teacher in several ways; every process writes the weights that it ended with.

Run by torchrun: ``distil_in_processes.py WORKSPACE``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tiny_tad_sr as tiny

from papers_shared.checkpoints import save_state_dict
from papers_shared.training import Run
from tad_sr import train as training

CASES: dict[str, dict[str, Any]] = {
    "all": {"validate_every": 1, "validation_first": 1},
    "without_gan": {"use_gan": False},
    "accumulated": {"accumulate": 2},
    "cached": {"target_cache": 8},
}


class RecordedRun(Run):
    """Writes what every process holds, not the first alone."""

    def finish(self) -> Path:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        for name, model in zip(("student", "discriminator"), self._trained.bare(), strict=True):
            path = self.output / f"{name}{rank}of{world}.safetensors"
            save_state_dict(model.state_dict(), path)
        return super().finish()


if __name__ == "__main__":
    workspace = Path(sys.argv[1])
    training.Run = RecordedRun  # type: ignore[misc]
    for case, changes in CASES.items():
        settings = {"batch_size": 4, "validation": str(workspace / "pairs"), **changes}
        if case != "all":
            settings["validation"] = ""
        training.train(tiny.options(workspace, case, **settings))
