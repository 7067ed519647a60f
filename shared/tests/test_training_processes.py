"""Training in processes of its own: killed in the middle, and two that share the work."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from papers_shared.checkpoints import load_state_dict

SCRIPT = Path(__file__).parent / "scripts" / "toy_training.py"
sys.path.insert(0, str(SCRIPT.parent))
toy = importlib.import_module("toy_training")
ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")


def same_result(one, other):
    """Whether two runs left the same bytes of log and the same bits of weights and averages."""
    if (one / "log.jsonl").read_bytes() != (other / "log.jsonl").read_bytes():
        return False
    for name in ("model.safetensors", "model_ema.safetensors"):
        first, second = load_state_dict(one / name), load_state_dict(other / name)
        if first.keys() != second.keys():
            return False
        if not all(torch.equal(first[key], second[key]) for key in first):
            return False
    return True


def test_a_run_killed_in_the_middle_goes_on_bit_for_bit(tmp_path):
    toy.train(tmp_path / "whole")
    killed = tmp_path / "killed"
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), "one", str(killed)],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 100
        log = killed / "log.jsonl"
        # Behind the checkpoint of step 10, so that logged steps have to be undone.
        while not (log.is_file() and '"step": 15,' in log.read_text()):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "model.safetensors").exists()
    toy.train(killed)
    assert same_result(killed, tmp_path / "whole")


def test_two_processes_train_as_one_and_stop_together(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(SCRIPT), "two", str(tmp_path)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Both ran, and both ended where the signal to one of them was seen.
    for rank in (0, 1):
        assert (tmp_path / f"rank_{rank}.txt").read_text() == "world 2 status 143"
    assert same_result(tmp_path / "stopped", tmp_path / "whole")

    alone = toy.train(tmp_path / "alone", dropout=0.0)
    together = load_state_dict(tmp_path / "smooth" / "model.safetensors")
    averaged = load_state_dict(tmp_path / "smooth" / "model_ema.safetensors")
    for name, value in together.items():
        assert (value - alone[name]).abs().max() < 1e-5
        assert (averaged[name] - alone[f"ema.{name}"]).abs().max() < 1e-5
    with pytest.raises(ValueError, match="written by 2 processes and this run has 1"):
        toy.train(tmp_path / "smooth")
