"""The generation network trained, sampled from and measured by the shared scripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ipt_v2.cli import main
from papers_shared.checkpoints import load_state_dict


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps the first precision it was asked for in the process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(4):
            picture = generator.integers(0, 255, (16, 20, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "photos" / label / f"{i}.png")
    return tmp_path / "photos"


def test_it_is_trained_resumed_sampled_from_and_measured(folder, tmp_path, capsys) -> None:
    def training(output: str, steps: int) -> list[str]:
        return [
            *("train-generation", "--data", str(folder), "--image-size", "16", "--variant", "g16"),
            *("--hidden-size", "8", "--steps", str(steps), "--batch-size", "2", "--lr", "0.01"),
            *("--ema-decay", "0.5", "--output", str(tmp_path / output)),
        ]

    assert main(training("whole", 3)) == 0
    assert main(training("cut", 1)) == 0
    assert main(training("cut", 3)) == 0
    states = [load_state_dict(tmp_path / x / "model_ema.safetensors") for x in ("whole", "cut")]
    assert all((value == states[1][name]).all() for name, value in states[0].items())
    weights = str(tmp_path / "whole/model_ema.safetensors")
    command = ["sample", "--weights", weights, "--steps", "3", "--count", "4", "--sampler", "dpm"]
    assert main([*command, "-o", str(tmp_path / "made"), "--classes", "0", "1"]) == 0
    assert np.asarray(Image.open(tmp_path / "made/000003.png")).shape == (16, 16, 3)
    capsys.readouterr()
    assert main(["eval-generation", "--weights", weights, "--data", str(folder)]) == 0
    assert 0 < float(capsys.readouterr().out.split()[1]) < 3
    assert main([*command, "--classes", "2"]) == 2
    assert "class 2: this network has 0 .. 1" in capsys.readouterr().err
