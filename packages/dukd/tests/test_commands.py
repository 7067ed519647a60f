"""The console script: training, distilling a network of one's own, photos, option files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import yaml

from dukd.cli import COMMANDS, main
from dukd.config import TrainConfig
from dukd.family import FAMILY, load_restorer
from dukd.model import VARIANTS
from dukd.teachers import CachedTeacher
from dukd.train import train
from papers_shared.checkpoints import load_state_dict, save_state_dict
from papers_shared.cli import load_config
from papers_shared.images import read_image, write_image
from papers_shared.workspace import package_folder

needs_mirror = pytest.mark.skipif(
    not os.environ.get("PAPERS_MIRROR"), reason="PAPERS_MIRROR is not set"
)
CONFIGS = sorted((package_folder("dukd") / "configs").glob("*.yaml"))
STUDENT = "EDSR(num_feat=4, num_block=1)"
TEACHER = "EDSR(num_feat=8, num_block=2)"
OWN = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3, padding=1))
    def forward(self, x):
        return torch.nn.functional.pixel_shuffle(self.head(x), 2)
"""


@pytest.fixture
def teacher(tmp_path: Path, make_edsr) -> str:
    path = tmp_path / "teacher.safetensors"
    save_state_dict(make_edsr(channels=8, blocks=2).state_dict(), path)
    return str(path)


@pytest.fixture
def settings(photos: str, teacher: str, tmp_path: Path) -> dict:
    """Of a training of seconds."""
    return {
        "student": STUDENT,
        "teacher": TEACHER,
        "teacher_weights": teacher,
        "scale": 2,
        "data": [photos],
        "patch": 8,
        "batch_size": 2,
        "steps": 4,
        "log_every": 2,
        "output": tmp_path / "run",
        "low_cache": tmp_path / "low",
    }


def config_of(settings: dict, **changes) -> TrainConfig:
    return load_config(TrainConfig, None, {**settings, **changes})


def error_of(capsys: pytest.CaptureFixture, *argv: str) -> str:
    """The error line of a command that must refuse."""
    capsys.readouterr()
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


# ---- training


def test_a_run_that_was_interrupted_ends_as_if_it_had_not(settings: dict, tmp_path: Path) -> None:
    for pool in (0, 6):
        whole = train(config_of(settings, pool=pool, output=tmp_path / f"whole{pool}"))
        part = {"pool": pool, "output": tmp_path / f"part{pool}", "lr_schedule": "multistep"}
        train(config_of(settings, **part, steps=2))
        resumed = train(config_of(settings, **part))
        for name, value in load_state_dict(whole.path).items():
            assert torch.equal(value, load_state_dict(resumed.path)[name]), name


def test_a_pool_changes_nothing_but_the_patches(
    settings: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    trained = train(config_of(settings, pool=4, steps=6, output=tmp_path / "pool"))
    assert trained.parts.keys() >= {"pixel", "kd", "zoom_in", "zoom_out_pixel", "zoom_out_kd"}
    assert all(value == value for value in trained.parts.values())
    assert "up to 0.0 of 0.0 GiB are kept in memory by each process\n" in capsys.readouterr().out


def test_little_memory_keeps_less_and_changes_nothing(
    settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pooled = {**settings, "pool": 4, "steps": 6}
    wanted = load_state_dict(train(config_of(pooled, output=tmp_path / "all")).path)
    answer = 2 * 3 * 16 * 16  # bytes
    monkeypatch.setattr("dukd.train.available_memory", lambda: 2 * 3 * answer)
    kept: list[CachedTeacher] = []
    monkeypatch.setattr(
        "dukd.train.CachedTeacher", lambda *a, **k: kept.append(CachedTeacher(*a, **k)) or kept[-1]
    )
    trained = train(config_of(pooled, output=tmp_path / "few"))
    assert (kept[0].capacity, len(kept[0]._answers)) == (3, 3)
    assert "the rest is computed each time" in capsys.readouterr().out
    for name, value in load_state_dict(trained.path).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["scratch", "fakd", "consistency", "zoom_out_true"])
def test_other_methods_train(method: str, settings: dict) -> None:
    if method in ("scratch", "zoom_out_true"):
        settings |= {"teacher": "", "teacher_weights": ""}
    start = torch.load(train(config_of(settings, method=method)).path.with_name("student.pth"))
    assert start.keys() == {"params", "params_ema"}


def test_released_mode_steps_twice_an_update(settings: dict) -> None:
    train(config_of(settings, step_mode="released"))
    state = torch.load(next(settings["output"].glob("checkpoints/*/state.pt")))
    (steps,) = {int(s["step"]) for s in state["optimizers"][0]["state"].values()}
    assert steps == 8


def test_csd_writes_the_narrow_network(settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "dukd.train.vgg19_features",
        lambda path: lambda x: [torch.nn.functional.avg_pool2d(x, 2**i) for i in range(5)],
    )
    csd = {"method": "csd", "vgg": "vgg19.pth", "student": "EDSR(num_feat=4, num_block=2)"}
    trained = train(config_of(settings, **csd))
    assert trained.path.name == "student.safetensors"
    assert load_state_dict(trained.path)["conv_first.weight"].shape == (4, 3, 3, 3)
    assert load_state_dict(trained.path.with_name("model.safetensors"))[
        "wide.conv_first.weight"
    ].shape == (8, 3, 3, 3)


def test_a_network_of_ones_own_is_distilled_and_used(
    settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_net.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    argv = ["distill", "--teacher", TEACHER, "--teacher-weights", settings["teacher_weights"]]
    argv += ["--student", "own_net:Net", "--data", settings["data"][0], "--scale", "2"]
    argv += ["--patch", "8", "--batch-size", "2", "--pool", "4", "--steps", "3"]
    assert main([*argv, "--output", str(tmp_path / "own")]) == 0
    weights = str(tmp_path / "own" / "model_ema.safetensors")
    photo = tmp_path / "photos" / "0.png"
    result = tmp_path / "large.png"
    run = ["upscale", str(photo), "-o", str(result), "--weights", weights]
    assert main([*run, "--variant", "own_net:Net"]) == 0
    assert read_image(result).shape == (3, 80, 88)
    assert main(run) == 2  # the file itself does not name code
    folder = ["eval", "--weights", weights, "--variant", "own_net:Net", "--data", str(photo.parent)]
    assert main(folder) == 0


def test_what_does_not_fit_is_refused(
    settings: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for changes, message in (
        ({"teacher": ""}, "dukd needs --teacher"),
        ({"method": "scratch"}, "asks no teacher"),
        ({"method": "csd"}, "csd and --vgg"),
        ({"pool": 1}, "gives no batch"),
        ({"method": "logits", "cells": 2}, "logits does not take"),
        ({"step_mode": "released", "mixed_precision": "fp16"}, "choose bf16"),
        ({"scale": 4, "student": "EDSR(num_feat=4, num_block=1)"}, "does not fit"),
        ({"student": "mini_x2", "scale": 3}, "enlarges 2 times"),
        ({"patch": 9}, "multiple of 2"),
    ):
        with pytest.raises(ValueError, match=message):
            train(config_of(settings, output=tmp_path / message.replace(" ", "_"), **changes))
    with pytest.raises(ValueError, match="was made with"):
        train(config_of(settings))
        train(config_of(settings, cells=2))
    assert "nor a test set" in error_of(capsys, "eval", "--data", "set6")
    assert "--student is required" in error_of(capsys, "train")
    assert "did you mean" in error_of(capsys, "train", "--studnt", "x")


@needs_mirror
def test_a_published_teacher_of_another_scale_is_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=r"the teacher makes .* scale 2"):
        train(config_of(settings, teacher="rlfn_x4", teacher_weights=""))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_configuration_names_networks_and_options_that_exist(path: Path) -> None:
    config = load_config(TrainConfig, path)
    assert VARIANTS[config.student].upscale == config.scale
    assert config.teacher in VARIANTS or config.teacher in ("", "rlfn_x2")
    assert config.output == Path("runs") / path.stem  # where the README looks for the result


# ---- photos


def test_the_shipped_student_enlarges_a_photo(tmp_path: Path, capsys) -> None:
    photo = tmp_path / "photo.png"
    write_image(torch.rand(3, 21, 33), photo)
    assert main(["upscale", str(photo), "-o", str(tmp_path / "large.png")]) == 0
    assert "mini_x2, the small network trained here" in capsys.readouterr().out
    large = read_image(tmp_path / "large.png")
    with torch.no_grad():
        expected = load_restorer()(read_image(photo)[None])[0].clamp(0, 1)
    assert large.shape == (3, 42, 66)
    assert (large - expected).abs().max() <= 1.01 / 255
    assert load_restorer("start_x2").scale == 2


def test_the_commands_of_photos_load_no_basicsr() -> None:
    assert FAMILY.build.keywords == {"implementation": "own"}  # type: ignore[attr-defined]


# ---- option files


def options(**train_options) -> dict:
    """What the authors' repository has, shortened."""
    edsr = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_block": 32, "upscale": 4}
    return {
        "scale": 4,
        "manual_seed": 10,
        "datasets": {"train": {"gt_size": 192, "batch_size_per_gpu": 16, "dataroot_gt": "/d/HR"}},
        "network_g": {**edsr, "num_feat": 64, "res_scale": 0.1},
        "network_t": {**edsr, "num_feat": 256, "res_scale": 0.1},
        "path": {"pretrain_network_t": "t.pth", "pretrain_network_g": "x2.pth",
                 "strict_load_g": False},
        "train": {
            "ema_decay": 0.999,
            "optim_g": {"type": "Adam", "lr": "1e-4"},
            "scheduler": {"type": "MultiStepLR", "milestones": [100000, 200000], "gamma": 0.1},
            "total_iter": 250000,
            "pixel_opt": {"loss_weight": 5.0},
            "kd_opt": {"loss_weight": 1.0},
            **train_options,
        },
    }  # fmt: skip


def test_an_option_file_becomes_a_configuration(tmp_path: Path) -> None:
    source, target = tmp_path / "train_EDSR_x4.yml", tmp_path / "edsr.yaml"
    dukd = {"noisy": {"prob": 0.3}, "dukd_opt": {"n_gt_sub": [1, 2], "zoom_out": True}}
    source.write_text(yaml.safe_dump(options(**dukd)))
    assert main(["options", str(source), str(target)]) == 0
    read = load_config(TrainConfig, target)
    ours = load_config(TrainConfig, package_folder("dukd") / "configs" / "edsr_x4.yaml")
    for name in ("patch", "cells", "zoom_out", "probability", "pixel_weight", "kd_weight", "lr",
                 "steps", "milestones", "lr_factor", "ema_decay", "step_mode", "method", "seed",
                 "released_order"):  # fmt: skip
        assert getattr(read, name) == getattr(ours, name), name
    assert (read.init, read.init_from, read.teacher_weights) == ("", "x2.pth", "t.pth")
    assert "num_feat=256" in read.teacher


def test_fakds_options_are_read(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, target = tmp_path / "fakd.yml", tmp_path / "fakd.yaml"
    feature = {"positions": ["conv_first", 10, "conv_after_body"], "type": "SA"}
    source.write_text(
        yaml.safe_dump(options(feature_distillation=feature, feature_opt={"loss_weight": 10.0}))
    )
    assert main(["options", str(source), str(target)]) == 0
    read = load_config(TrainConfig, target)
    assert (read.method, read.feature_weight) == ("fakd", 10)
    assert read.positions == ["conv_first", "body.10", "conv_after_body"]
    source.write_text("scale: 4\n")
    assert "are they of a DUKD training" in error_of(capsys, "options", str(source), str(target))
    assert "no option file" in error_of(capsys, "options", str(tmp_path / "none.yml"), str(target))


def test_every_command_has_a_summary() -> None:
    assert all(c.config.__doc__ for c in COMMANDS.values())
    json.dumps(sorted(COMMANDS))
