"""Training a ResShift teacher, from which a student is then distilled."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from papers_shared._basicsr import basicsr_module
from papers_shared.checkpoints import file_metadata, load_state_dict
from papers_shared.cli import load_config
from tad_sr import family, train_teacher
from tad_sr import train as training
from tad_sr.config import TeacherConfig
from tad_sr.model import VARIANTS

try:
    basicsr_module("data.degradations")
except ImportError as reason:
    pytest.skip(str(reason), allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
tiny = importlib.import_module("tiny_tad_sr")


@pytest.fixture(autouse=True)
def tiny_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "tiny", tiny.TINY)
    monkeypatch.setitem(family.SCHEDULERS, "tiny", {**family.STUDENT, "kappa": 1.5})


def options(workspace: Path, output: str, **changes: Any) -> TeacherConfig:
    if not (workspace / "photos").is_dir():
        tiny.write_photos(workspace / "photos")
    kept = ("crop", "rescale", "degradation", "batch_size", "validation", "workers", "log_every")
    given = {
        **{name: tiny.OPTIONS[name] for name in kept},
        "variant": "tiny",
        "photos": [str(workspace / "photos")],
        "output": workspace / output,
        "steps": 2,
        "lr": 1e-3,
        "warmup": 1,
        **changes,
    }
    return load_config(TeacherConfig, None, given)


@pytest.mark.parametrize("prediction", ["sample", "residual"])
def test_a_teacher_goes_through_the_whole_chain(tmp_path: Path, prediction: str) -> None:
    result = train_teacher.train(options(tmp_path, "run", prediction=prediction))
    told = json.loads(file_metadata(result.path)["tad_sr"])
    assert told["scheduler"]["prediction_type"] == prediction
    assert told["scheduler"]["timestep_spacing"] == "leading"
    assert told["scheduler"]["kappa"] == 1.5
    assert told["autoencoder"] == "small"
    pipeline = family.load_pipeline(str(result.path))
    assert pipeline.default_steps == 15
    assert pipeline.enlarge(tiny.photo(8, 8)).shape == (3, 32, 32)
    with pytest.raises(ValueError, match="trailing"):
        pipeline.enlarge(tiny.photo(8, 8), 1)


def test_a_student_is_distilled_from_what_was_written(tmp_path: Path) -> None:
    teacher = train_teacher.train(options(tmp_path, "teacher", prediction="residual")).path
    result = training.train(tiny.options(tmp_path, "student", teacher=str(teacher), steps=1))
    told, of_teacher = (
        json.loads(file_metadata(path)["tad_sr"])["scheduler"] for path in (result.path, teacher)
    )
    assert told == {**of_teacher, "timestep_spacing": "trailing"}


def test_an_interrupted_training_ends_bit_for_bit_like_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"steps": 3, "save_every": 1, "lr_schedule": "cosine"}
    train_teacher.train(options(tmp_path, "whole", **changes))
    loop, calls = importlib.import_module("papers_shared.diffusion.train_denoiser"), []
    latent_pair = loop.latent_pair

    class PowerCutError(RuntimeError):
        pass

    def fails_in_the_third_step(*arguments: Any, **given: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise PowerCutError
        return latent_pair(*arguments, **given)

    monkeypatch.setattr(loop, "latent_pair", fails_in_the_third_step)
    with pytest.raises(PowerCutError):
        train_teacher.train(options(tmp_path, "cut", **changes))
    train_teacher.train(options(tmp_path, "cut", **changes))
    for name in ("model", "model_ema"):
        whole, cut = (
            load_state_dict(tmp_path / run / f"{name}.safetensors") for run in ("whole", "cut")
        )
        assert all(torch.equal(whole[key], cut[key]) for key in whole)
    logs = [(tmp_path / run / "log.jsonl").read_text() for run in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_an_unknown_variant_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no variant 'realsrx4'; known: realsr, faceir, small"):
        train_teacher.train(options(tmp_path, "run", variant="realsrx4"))
    assert not (tmp_path / "run").exists()


def test_an_autoencoder_of_other_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="12 latent channels"):
        train_teacher.train(options(tmp_path, "run", variant="realsr"))
