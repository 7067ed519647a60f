"""What several processes make together is what one makes alone; what was cut off goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from papers_shared.checkpoints import load_state_dict, save_state_dict
from u_dit.cli import main
from u_dit.model import build

from .conftest import TINY


def torchrun(*command: str) -> None:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    line += ["--master_port", str(29500 + os.getpid() % 1000), "-m", *command]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    model = build(TINY).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    facts = json.dumps({"config": model.options.to_dict(), "data": "pixels"})
    save_state_dict(model.state_dict(), tmp_path / "w.safetensors", metadata={"u_dit": facts})
    return tmp_path / "w.safetensors"


@pytest.mark.slow
def test_two_processes_sample_what_one_samples(weights, tmp_path) -> None:
    options = ["--weights", str(weights), "--count", "5", "--steps", "4", "--device", "cpu"]
    torchrun("u_dit.sample", *options, "-o", str(tmp_path / "two"))
    assert main(["sample", *options, "-o", str(tmp_path / "one"), "--grid"]) == 0
    for i in range(5):
        one, two = (
            np.asarray(Image.open(tmp_path / name / f"{i:06d}.png")).astype(int)
            for name in ("one", "two")
        )
        assert abs(one - two).max() <= 1
    assert Image.open(tmp_path / "one/grid.png").width > 4 * 64
    assert not (tmp_path / "two/000005.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--fsdp"]], ids=["ddp", "fsdp"])
def test_two_processes_train_as_one_does(folder, tmp_path, extra) -> None:
    options = ["--data", str(folder), "--image-size", "8", "--variant", "U-DiT-mini"]
    options += ["--hidden-size", "8", "--num-heads", "2", "--depth", "1", "1", "1", "1", "1"]
    options += ["--batch-size", "4", "--ema-decay", "0.5", "--class-dropout", "0", "--lr", "0.01"]
    torchrun("u_dit.train", *options, *extra, "--steps", "2", "--output", str(tmp_path / "run"))
    torchrun("u_dit.train", *options, *extra, "--steps", "3", "--output", str(tmp_path / "run"))
    torchrun("u_dit.train", *options, *extra, "--steps", "3", "--output", str(tmp_path / "whole"))
    for name in ("model", "model_ema"):
        cut, whole = (
            load_state_dict(tmp_path / run / f"{name}.safetensors") for run in ("run", "whole")
        )
        for key, value in whole.items():
            torch.testing.assert_close(cut[key], value, rtol=1e-4, atol=1e-5)
    weights = str(tmp_path / "run/model_ema.safetensors")
    command = ["sample", "--weights", weights, "--steps", "2", "--count", "1", "--guidance", "1"]
    assert main([*command, "-o", str(tmp_path / "out")]) == 0


def losses(run: Path) -> dict[int, float]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, lines) if "loss" in row}


@pytest.mark.slow
def test_a_killed_training_goes_on_with_the_same_losses(folder, tmp_path) -> None:
    def command(run: str, steps: int) -> list[str]:
        options = ["--data", str(folder), "--image-size", "8", "--variant", "U-DiT-mini"]
        options += ["--hidden-size", "8", "--num-heads", "2", "--depth", "1", "1", "1", "1", "1"]
        options += ["--batch-size", "4", "--save-every", "2", "--log-every", "1", "--steps"]
        return [*options, str(steps), "--output", str(tmp_path / run)]

    assert main(["train", *command("whole", 8)]) == 0
    killed = subprocess.Popen([sys.executable, "-m", "u_dit.train", *command("cut", 100_000)])
    limit = time.monotonic() + 600
    while not list((tmp_path / "cut").glob("**/step*4*")) and time.monotonic() < limit:
        assert killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    steps = max(8, max(losses(tmp_path / "cut")) + 1)
    assert main(["train", *command("cut", steps)]) == 0
    cut, whole = losses(tmp_path / "cut"), losses(tmp_path / "whole")
    for step, loss in whole.items():
        assert cut[step] == pytest.approx(loss, rel=1e-6)
