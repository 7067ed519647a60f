"""Training in several processes through accelerate."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from papers_shared.checkpoints import load_file

SCRIPT = Path(__file__).parent / "scripts" / "train_on_noise.py"


@pytest.mark.slow
def test_two_processes_keep_the_same_weights(tmp_path: Path) -> None:
    """They are not those of one process: batch norms see half a batch each, and signs flip."""
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *command, "--standalone", str(SCRIPT), str(tmp_path)],
        env=environment,
        check=True,
    )
    first, second = (load_file(tmp_path / f"rank{i}of2.safetensors") for i in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
