"""Distillation in several processes through accelerate."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from papers_shared._basicsr import basicsr_module
from papers_shared.checkpoints import load_file, load_state_dict

try:
    basicsr_module("data.degradations")
except ImportError as reason:
    pytest.skip(str(reason), allow_module_level=True)

SCRIPT = Path(__file__).parent / "scripts" / "distil_in_processes.py"
sys.path.insert(0, str(SCRIPT.parent))
tiny = importlib.import_module("tiny_tad_sr")
cases = importlib.import_module("distil_in_processes").CASES


@pytest.mark.slow
def test_two_processes_keep_the_same_student_and_discriminator(tmp_path: Path) -> None:
    tiny.prepare(tmp_path, num_train_timesteps=4)
    tiny.write_pairs(tmp_path / "pairs")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *command, str(SCRIPT), str(tmp_path)],
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    teacher = load_state_dict(tmp_path / "teacher.safetensors")
    for case, changes in cases.items():
        for name in ("student", "discriminator"):
            one, other = (
                load_file(tmp_path / case / f"{name}{rank}of2.safetensors") for rank in (0, 1)
            )
            assert all(torch.equal(one[key], other[key]) for key in one), (case, name)
            if name == "student":
                assert not torch.equal(one["out.2.weight"], teacher["out.2.weight"])
        lines = (tmp_path / case / "log.jsonl").read_text().splitlines()
        steps = [line for line in map(json.loads, lines) if "loss" in line]
        assert len(steps) == 3
        assert all(("GAN_loss_D" in line) == changes.get("use_gan", True) for line in steps)
    assert sum("psnr_y" in line for line in (tmp_path / "all" / "log.jsonl").open()) == 3
    # Each of the two computed half of the targets, of pairs and with noise of its own.
    targets = load_file(tmp_path / "cached" / "targets.safetensors")
    assert {len(value) for value in targets.values()} == {8}
    assert len({tuple(noise.flatten()[:4].tolist()) for noise in targets["noise"]}) == 8
