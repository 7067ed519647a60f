"""Training in several processes through accelerate."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from papers_shared.checkpoints import load_file

SCRIPT = Path(__file__).parent / "scripts" / "train_on_plateau.py"


@pytest.mark.slow
def test_two_processes_whose_validations_disagree_follow_the_first(data, tmp_path: Path) -> None:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [sys.executable, *command, str(SCRIPT), str(data), str(tmp_path)],
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        check=True,
    )
    first, second = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
