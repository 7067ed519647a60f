"""Distillation: what each loss trains, caching, resuming, and what is written."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from papers_shared._basicsr import basicsr_module
from papers_shared.checkpoints import file_metadata, load_file, load_state_dict
from papers_shared.cli import find_config, load_config
from papers_shared.training import NonFiniteLoss
from papers_shared.workspace import package_folder
from tad_sr import losses
from tad_sr import train as training
from tad_sr.config import TeacherConfig, TrainConfig
from tad_sr.discriminator import discriminator_for
from tad_sr.family import load_pipeline
from tad_sr.model import VARIANTS

try:
    basicsr_module("data.degradations")
except ImportError as reason:
    pytest.skip(str(reason), allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
tiny = importlib.import_module("tiny_tad_sr")

CONFIGS = sorted((package_folder("tad_sr") / "configs").glob("*.yaml"))
WITHOUT_GAN = {"use_gan": False}
STEPS = 4


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Two photos and a teacher, of few steps because its chain is what takes time."""
    return tiny.prepare(tmp_path, num_train_timesteps=STEPS)


def log_of(workspace: Path, output: str) -> list[dict[str, float]]:
    lines = (workspace / output / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def student(workspace: Path, output: str, name: str = "model") -> dict[str, torch.Tensor]:
    return load_state_dict(workspace / output / f"{name}.safetensors")


def newest(workspace: Path, output: str) -> Path:
    return max((workspace / output / "checkpoints").iterdir())


def discriminator(workspace: Path, output: str) -> dict[str, torch.Tensor]:
    return load_state_dict(newest(workspace, output) / "model_1.safetensors")


# ---- losses


@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({}, "mse mse_hsd GAN_loss GAN_loss_D"),
        ({"score_distill_target": "gt", "double_scale": False}, "mse mse_hsd GAN_loss GAN_loss_D"),
        ({"distill_type": "SDS", **WITHOUT_GAN}, "mse mse_sds"),
        ({"distill_type": "none", **WITHOUT_GAN}, "mse"),
        ({"distill_type": "none"}, "mse GAN_loss GAN_loss_D"),
        ({"regression_weight": 0.0, "uniform_sampling": True, **WITHOUT_GAN}, "mse mse_hsd"),
        ({"noise": "gaussian"}, "mse mse_hsd GAN_loss GAN_loss_D"),
        ({"accumulate": 2, "target_cache": 4}, "mse mse_hsd GAN_loss GAN_loss_D"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)) or "all",
)
def test_every_combination_of_losses_trains_student_and_average(
    workspace: Path, changes: dict[str, Any], terms: str
) -> None:
    result = training.train(tiny.options(workspace, "run", steps=2, **changes))
    for line in log_of(workspace, "run"):
        assert line.keys() == {"step", "epoch", "loss", *terms.split()}
        total = sum(line[name] for name in terms.split() if name != "GAN_loss_D")
        assert line["loss"] == pytest.approx(total, rel=1e-4)
    trained, averaged = student(workspace, "run"), student(workspace, "run", "model_ema")
    teacher = load_state_dict(workspace / "teacher.safetensors")
    for name in ("out.2.weight", "input_blocks.0.0.weight"):
        steps = [(x[name] - teacher[name]).abs().max() for x in (averaged, trained)]
        assert 0 < steps[0] < steps[1]
    assert result.path == workspace / "run" / "model_ema.safetensors"
    assert same(averaged, result.model.state_dict())


def test_the_student_may_start_at_one_of_four_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, output = [], losses.student_output

    def recorded(*arguments: Any, **options: Any) -> Any:
        started.append(options["t"])
        return output(*arguments, **options)

    monkeypatch.setattr(training.losses, "student_output", recorded)
    tiny.prepare(tmp_path)
    free = {"use_fixed_time": False, "steps": 6, **WITHOUT_GAN}
    training.train(tiny.options(tmp_path, "run", **free))
    assert set(started) <= {3, 7, 11, 14}
    assert len(set(started)) > 1


def test_bf16_trains_float32_weights(workspace: Path) -> None:
    # accelerate keeps one precision a process; a run of another needs a fresh state.
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        training.train(tiny.options(workspace, "run", steps=2, mixed_precision="bf16"))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    floats = [v for v in student(workspace, "run").values() if v.is_floating_point()]
    assert {value.dtype for value in floats} == {torch.float32}
    assert all(line["loss"] < 10 for line in log_of(workspace, "run"))


def test_a_network_may_be_conditioned_on_the_latent_instead(tmp_path: Path) -> None:
    tiny.prepare(tmp_path, config=tiny.tiny(lq_channels=12), num_train_timesteps=STEPS)
    result = training.train(tiny.options(tmp_path, "run", steps=2, target_cache=2))
    assert load_pipeline(str(result.path)).enlarge(tiny.photo(8, 8)).shape == (3, 32, 32)
    assert all(line["GAN_loss_D"] > 0 for line in log_of(tmp_path, "run"))


def test_the_student_starts_as_its_teacher(workspace: Path) -> None:
    training.train(tiny.options(workspace, "run", steps=0))
    teacher = load_state_dict(workspace / "teacher.safetensors")
    assert same(student(workspace, "run"), teacher)
    assert same(student(workspace, "run", "model_ema"), teacher)


def test_the_teacher_never_changes(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def load(*arguments: Any, **options: Any) -> Any:
        loaded.append(load_pipeline(arguments[1], autoencoder=options["autoencoder"]))
        return loaded[0]

    monkeypatch.setattr(training, "load_pipeline", load)
    training.train(tiny.options(workspace, "run"))
    teacher = load_state_dict(workspace / "teacher.safetensors")
    assert same(loaded[0].unet.state_dict(), teacher)
    assert all(p.grad is None for p in loaded[0].unet.parameters())
    assert not same(student(workspace, "run"), teacher)


def test_the_discriminator_is_trained_with_the_adversarial_loss_alone(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def recorded(*arguments: Any, **options: Any) -> Any:
        module = discriminator_for(*arguments, **options)
        started.append({n: v.clone() for n, v in module.state_dict().items()})
        return module

    monkeypatch.setattr(training, "discriminator_for", recorded)
    training.train(tiny.options(workspace, "with"))
    training.train(tiny.options(workspace, "without", use_gan=False))
    assert same(*started)
    assert same(discriminator(workspace, "without"), started[0])
    trained = discriminator(workspace, "with")
    assert all(not torch.equal(trained[name], started[0][name]) for name in trained)


def test_the_student_s_losses_leave_nothing_in_the_discriminator(workspace: Path) -> None:
    # A student that stands still gives both discriminators the same features.
    fixed = {"lr": 0.0, "accumulate": 2, "steps": 2}
    training.train(tiny.options(workspace, "light", gan_weight=0.0, **fixed))
    training.train(tiny.options(workspace, "heavy", gan_weight=100.0, **fixed))
    assert same(discriminator(workspace, "light"), discriminator(workspace, "heavy"))


def test_the_warm_up_begins_low_and_ends_at_the_rate(workspace: Path) -> None:
    training.train(tiny.options(workspace, "run", warmup=2, steps=1, **WITHOUT_GAN))
    teacher = load_state_dict(workspace / "teacher.safetensors")
    change = (student(workspace, "run")["out.2.bias"] - teacher["out.2.bias"]).abs().max()
    # Adam's first step is the learning rate, in whatever direction: here 1e-3 / 2.
    torch.testing.assert_close(change, torch.tensor(5e-4), rtol=1e-2, atol=0)


# ---- targets computed once


CACHED = {"target_cache": 4, "steps": 2}


def test_cached_targets_are_those_of_the_chain(workspace: Path) -> None:
    training.train(tiny.options(workspace, "run", **CACHED))
    pairs = {n: v.float() for n, v in load_file(workspace / "run" / training.CACHE).items()}
    assert {len(value) for value in pairs.values()} == {4}
    teaching = load_pipeline(str(workspace / "teacher.safetensors"))
    z_T = losses.start(teaching.scheduler, pairs["z_y"], pairs["noise"])
    chain = {"z_T": z_T, "z_y": pairs["z_y"], "lq": pairs["lq"], "t": STEPS - 1}
    anew = losses.teacher_target(teaching.unet, teaching.scheduler, **chain)
    # The cache holds 16 bits.
    torch.testing.assert_close(pairs["z_tea"], anew, rtol=0, atol=0.01)
    assert anew.std() > 0.3
    assert not torch.equal(pairs["noise"][0], pairs["noise"][2])


def test_a_cache_serves_several_runs_and_is_not_made_again(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {**CACHED, "cache_folder": workspace}
    training.train(tiny.options(workspace, "first", **shared))

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the teacher's chain runs again")

    monkeypatch.setattr(training.losses, "teacher_target", never)
    training.train(tiny.options(workspace, "again", **shared))
    assert same(student(workspace, "first"), student(workspace, "again"))
    training.train(tiny.options(workspace, "other", seed=1, **shared))
    assert not same(student(workspace, "first"), student(workspace, "other"))


def test_a_cache_of_other_settings_is_refused(workspace: Path) -> None:
    shared = {**CACHED, "cache_folder": workspace}
    training.train(tiny.options(workspace, "run", **shared))
    other_pairs = {
        "target_cache": 6,
        "crop": 64,
        "rescale": True,
        "degradation": "training",
        "pairs_seed": 1,
    }
    for name, value in other_pairs.items():
        with pytest.raises(ValueError, match=r"targets\.safetensors was made with other settings"):
            training.train(tiny.options(workspace, name, **{**shared, name: value}))
    tiny.write_teacher(workspace / "teacher.safetensors", seed="retrained")
    with pytest.raises(ValueError, match="other settings"):
        training.train(tiny.options(workspace, "retrained", **shared))


def test_cached_targets_are_of_the_noisiest_step_alone(workspace: Path) -> None:
    with pytest.raises(ValueError, match="target_cache needs use_fixed_time"):
        training.train(tiny.options(workspace, "run", use_fixed_time=False, **CACHED))
    assert not (workspace / "run").exists()


# ---- resuming


def equal_trees(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal_trees(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal_trees, one, other))
    return one == other


def test_an_interrupted_training_ends_bit_for_bit_like_an_uninterrupted_one(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"steps": 4, "save_every": 1, "warmup": 4}
    training.train(tiny.options(workspace, "whole", **changes))

    class PowerCutError(RuntimeError):
        pass

    calls = itertools.count()
    output = losses.student_output

    def fails_in_the_third_step(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 2:
            raise PowerCutError
        return output(*arguments, **options)

    monkeypatch.setattr(training.losses, "student_output", fails_in_the_third_step)
    with pytest.raises(PowerCutError):
        training.train(tiny.options(workspace, "cut", **changes))
    assert newest(workspace, "cut").name == "step_00000002"
    monkeypatch.setattr(training.losses, "student_output", output)
    training.train(tiny.options(workspace, "cut", **changes))

    for name in ("model", "model_ema"):
        assert same(student(workspace, "cut", name), student(workspace, "whole", name))
    assert same(discriminator(workspace, "cut"), discriminator(workspace, "whole"))
    states = [load_file(newest(workspace, name) / "state.pt") for name in ("whole", "cut")]
    assert len(states[0]["optimizers"]) == 2
    assert all(optimizer["state"] for optimizer in states[0]["optimizers"])
    assert equal_trees(*states)
    assert log_of(workspace, "cut") == log_of(workspace, "whole")


def test_going_on_with_another_setting_is_refused(workspace: Path) -> None:
    training.train(tiny.options(workspace, "run", steps=1))
    with pytest.raises(ValueError, match="hsd_weight"):
        training.train(tiny.options(workspace, "run", steps=1, hsd_weight=0.1))


def test_a_finished_training_goes_on_for_more_steps(workspace: Path) -> None:
    training.train(tiny.options(workspace, "whole", steps=2))
    training.train(tiny.options(workspace, "run", steps=1))
    training.train(tiny.options(workspace, "run", steps=2))
    assert same(student(workspace, "run"), student(workspace, "whole"))
    assert same(discriminator(workspace, "run"), discriminator(workspace, "whole"))


def test_validating_does_not_change_what_is_learned(workspace: Path) -> None:
    training.train(tiny.options(workspace, "plain", steps=2, accumulate=2))
    pairs = tiny.write_pairs(workspace / "pairs")
    validated = {"validation": str(pairs), "validate_every": 1, "validation_first": 1}
    training.train(tiny.options(workspace, "validated", steps=2, accumulate=2, **validated))
    for name in ("model", "model_ema"):
        assert same(student(workspace, "plain", name), student(workspace, "validated", name))
    scores = [line["psnr_y"] for line in log_of(workspace, "validated") if "psnr_y" in line]
    assert len(scores) == 2
    assert all(0 < score < 60 for score in scores)


# ---- what stops a training


@pytest.mark.parametrize(
    "changes",
    [{}, WITHOUT_GAN, {"distill_type": "none", **WITHOUT_GAN}],
    ids=["discriminator", "score", "regression"],
)
def test_a_batch_of_nan_stops_the_training_and_is_kept(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    poison(monkeypatch)
    with pytest.raises(NonFiniteLoss, match="step 2 is not finite"):
        training.train(tiny.options(workspace, "run", save_every=1, **changes))
    kept = workspace / "run" / "nonfinite" / "step_00000002"
    assert load_file(kept / "batch_0.pt")["batch"]["lq"].shape == (2, 3, 8, 8)
    good = load_state_dict(newest(workspace, "run") / "model.safetensors")
    assert all(value.isfinite().all() for value in good.values())


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second batch's latents are NaN."""
    calls, encoded = itertools.count(), training.latent_pair

    def latent_pair(*arguments: Any, **options: Any) -> Any:
        z_gt, z_y = encoded(*arguments, **options)
        return (z_gt, z_y * float("nan")) if next(calls) == 1 else (z_gt, z_y)

    monkeypatch.setattr(training, "latent_pair", latent_pair)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"teacher": "nowhere.pth"}, FileNotFoundError, r"nowhere\.pth.*LearningHx/TAD-SR"),
        ({"photos": ["nowhere"]}, FileNotFoundError, "nowhere is neither a folder"),
        ({"crop": 128}, FileNotFoundError, "at least 128 pixels"),
        ({"degradation": "face"}, ValueError, "scale 1"),
        ({"validation": "pairs"}, ValueError, "network's scale is 4"),
        ({"accumulate": 3}, ValueError, "batch_size 2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_trained_is_refused(
    workspace: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    if "validation" in changes:
        tiny.write_pairs(workspace / "pairs", scale=1)
        changes = {"validation": str(workspace / "pairs")}
    with pytest.raises(error, match=message):
        training.train(tiny.options(workspace, "run", **changes))


# ---- what is written


def test_a_student_enlarges_in_one_step_from_the_noisiest(workspace: Path) -> None:
    result = training.train(tiny.options(workspace, "run", steps=1))
    pipeline = load_pipeline(str(result.path))
    assert pipeline.default_steps == 1
    assert pipeline.scheduler.config.prediction_type == "residual"
    large = pipeline.enlarge(tiny.photo(20, 27), seed=3)
    assert large.shape == (3, 80, 108)
    assert pipeline.scheduler.timesteps.tolist() == [STEPS - 1]
    assert torch.equal(large, pipeline.enlarge(tiny.photo(20, 27), 1, seed=3))
    told = json.loads(file_metadata(result.path)["tad_sr"])
    assert told["autoencoder"] == "small"
    assert file_metadata(result.path)["step"] == "1"


def test_the_authors_layout_teaches_too(workspace: Path) -> None:
    state = tiny.weights(VARIANTS["small"])
    path = workspace / "resshift.pth"
    torch.save({"state_dict": {f"module.{n}": v for n, v in state.items()}}, path)
    with pytest.raises(ValueError, match="without its autoencoder"):
        training.train(tiny.options(workspace, "run", teacher=str(path)))
    given = {"teacher": str(path), "autoencoder": "small", "steps": 0}
    result = training.train(tiny.options(workspace, "run", **given))
    pipeline = load_pipeline(str(result.path))
    assert pipeline.default_steps == 1
    assert torch.equal(pipeline.unet.state_dict()["out.2.bias"], state["out.2.bias"])


def test_a_folder_of_a_pipeline_is_no_teacher(workspace: Path) -> None:
    load_pipeline(str(workspace / "teacher.safetensors")).save_pretrained(workspace / "saved")
    with pytest.raises(ValueError, match="give the teacher's file of weights"):
        training.train(tiny.options(workspace, "run", teacher=str(workspace / "saved")))


def test_a_face_teacher_of_four_steps_is_distilled_at_its_own_size(tmp_path: Path) -> None:
    tiny.prepare(
        tmp_path,
        config=tiny.tiny(lq_size=32),
        num_train_timesteps=4,
        min_noise_level=0.2,
        scale_factor=1,
    )
    weights = {"hsd_weight": 0.1, "gan_weight": 0.2, "steps": 2}
    result = training.train(tiny.options(tmp_path, "run", degradation="face", **weights))
    assert len(result.scheduler) == 4
    assert load_pipeline(str(result.path)).enlarge(tiny.photo(32, 32)).shape == (3, 32, 32)


# ---- configurations


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(file: Path) -> None:
    if file.stem in ("teacher", "small_teacher"):
        teacher = load_config(TeacherConfig, file)
        assert teacher.variant in VARIANTS
        return
    config = load_config(TrainConfig, file)
    assert config.variant in ("", *VARIANTS)
    training.loss_config(config)


def test_the_defaults_are_the_authors_recipe() -> None:
    config = load_config(TrainConfig, find_config("realsr", "tad_sr/configs"))
    named = ("teacher", "variant", "autoencoder", "photos")
    changed = {n: getattr(config, n) for n in named}
    assert config == TrainConfig(**changed)
    # tad_sr sheet 4.6
    assert (config.steps, config.batch_size, config.lr, config.warmup) == (30_000, 64, 5e-5, 5000)
    assert (config.crop, config.ema_decay, config.degradation) == (256, 0.999, "training")
    assert config.rescale  # dit_sr sheet 4.3, whose data set ResShift's is
    assert training.loss_config(config) == losses.LossConfig()


def test_faces_are_distilled_with_other_weights_and_their_own_degradation() -> None:
    config = load_config(TrainConfig, find_config("faceir", "tad_sr/configs"))
    assert (config.hsd_weight, config.gan_weight, config.batch_size) == (0.1, 0.2, 56)
    assert (config.degradation, config.crop, config.variant) == ("face", 512, "faceir")
    assert config.validation == ""  # val_sr is of scale 4


def test_the_small_student_learns_from_the_small_teacher_of_the_same_photos() -> None:
    teacher = load_config(TeacherConfig, find_config("small_teacher", "tad_sr/configs"))
    config = load_config(TrainConfig, find_config("small", "tad_sr/configs"))
    for name in ("photos", "crop", "rescale", "degradation", "pool", "pool_size", "pairs_seed"):
        assert getattr(config, name) == getattr(teacher, name)
    assert config.teacher == "small_teacher"
    assert teacher.prediction == "residual"
    assert config.target_cache >= config.batch_size
