"""The console script: photos of any kind, files of weights; on bad input one line and status 2."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lipt import VARIANTS, build, load_official
from lipt.cli import COMMANDS, main
from lipt.config import TrainConfig
from lipt.family import FAMILY, load_restorer
from lipt.model import Config
from papers_shared.checkpoints import file_metadata, load_state_dict, save_state_dict
from papers_shared.cli import load_config
from papers_shared.images import read_image, write_image
from papers_shared.restoration.family import RestorationFamily, network_metadata
from papers_shared.restoration.task import Task
from papers_shared.workspace import package_folder

TASKS = {
    "sr": Task("sr", scale=4),
    "denoise": Task("denoise", level=25),
    "dejpeg": Task("dejpeg", channels=1, level=10),
}
LEVEL = 1.01 / 255  # one of 8 bits
CONFIGS = sorted((package_folder("lipt") / "configs").glob("*.yaml"))


def config_of(kind: str) -> Config:
    task = TASKS[kind]
    residual = task.scale == 1
    return Config(
        scale=task.scale, colors=task.channels, m_elan=2, c_elan=8, n_share=1, residual=residual
    )


def random_state(kind: str) -> dict[str, torch.Tensor]:
    """Fresh weights; the features are small, so that no softmax turns rounding into a choice."""
    state = build(config_of(kind)).state_dict()
    state["head.0.weight"] /= 255
    return state


def write_weights(folder: Path, kind: str) -> str:
    """A small random network in a file as training writes it."""
    path = folder / f"{kind}.safetensors"
    metadata = network_metadata(FAMILY, config_of(kind), TASKS[kind])
    save_state_dict(random_state(kind), path, metadata=metadata)
    return str(path)


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return write_weights(tmp_path, "sr")


def picture(channels: int, height: int = 17, width: int = 31) -> torch.Tensor:
    return torch.rand(channels, height, width, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def photo(tmp_path: Path) -> str:
    write_image(picture(3), tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def error_of(capsys: pytest.CaptureFixture, *argv: str) -> str:
    """The error line of a command that must refuse."""
    capsys.readouterr()
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("lipt: error: ")
    return captured.err


# ---- photos


def test_an_odd_photo_becomes_four_times_as_large(photo: str, weights: str, tmp_path: Path) -> None:
    output = tmp_path / "large.png"
    assert main(["upscale", photo, "-o", str(output), "--weights", weights]) == 0
    large = read_image(output)
    assert large.shape == (3, 68, 124)
    with torch.no_grad():
        expected = load_restorer(weights)(read_image(Path(photo))[None])[0].clamp(0, 1)
    assert (large - expected).abs().max() <= LEVEL
    unmerged = ["upscale", photo, "-o", str(output), "--weights", weights, "--no-merge"]
    assert main(unmerged) == 0
    assert (read_image(output) - large).abs().max() <= LEVEL


def test_grey_stays_grey_and_alpha_stays(weights: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    write_image(picture(1), folder / "grey.png")
    write_image(picture(4), folder / "alpha.png")
    output = tmp_path / "results"
    assert main(["upscale", str(folder), "-o", str(output), "--weights", weights]) == 0
    shapes = {p.stem: read_image(p, mode="stored").shape for p in output.glob("*.png")}
    assert shapes == {"grey": (1, 68, 124), "alpha": (4, 68, 124)}


@pytest.mark.parametrize(("verb", "name"), [("denoise", "denoised"), ("dejpeg", "dejpeg")])
def test_a_photo_is_restored_beside_itself(
    verb: str, name: str, photo: str, tmp_path: Path
) -> None:
    assert main([verb, photo, "--weights", write_weights(tmp_path, verb)]) == 0
    clean = read_image(Path(photo).with_name(f"photo_{name}.png"))
    assert clean.shape == (3, 17, 31)
    assert not torch.equal(clean, read_image(Path(photo)))


@pytest.mark.parametrize("kind", FAMILY.shipped)
def test_a_shipped_network_is_found_and_announced(
    kind: str,
    photo: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    name = FAMILY.shipped[kind]
    if not FAMILY.path_of(name).is_file():  # not in this checkout yet: a random one instead
        path = Path(write_weights(tmp_path, kind))
        monkeypatch.setattr(RestorationFamily, "path_of", lambda self, weights: path)
    verb = {"sr": "upscale"}.get(kind, kind)
    assert main([verb, photo, "-o", str(tmp_path / "out.png")]) == 0
    out = capsys.readouterr().out
    assert f"{name}, the small network trained here" in out
    assert "no weights of LIPT" in out


def test_what_cannot_be_restored_is_refused(
    photo: str, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert "give --weights of one for denoise" in error_of(
        capsys, "denoise", photo, "--weights", weights
    )
    error = error_of(capsys, "upscale", photo, "--weights", str(tmp_path / "none.safetensors"))
    assert "mini_x4" in error
    assert "issue 2" in error
    assert "no_such.png" in error_of(capsys, "upscale", str(tmp_path / "no_such.png"))
    other = tmp_path / "other.safetensors"
    save_state_dict({"conv.weight": torch.zeros(3, 3)}, other)
    assert "known network" in error_of(capsys, "upscale", photo, "--weights", str(other))
    assert "--wieghts" in error_of(capsys, "upscale", photo, "--wieghts", weights)


# ---- convert


def training_file(folder: Path, kind: str = "sr") -> tuple[str, dict[str, Any]]:
    """What the authors' training writes."""
    state = random_state(kind)
    path = folder / "model_x4_10.pt"
    torch.save(
        {"epoch": 10, "model_state_dict": {f"module.{n}": v for n, v in state.items()}}, path
    )
    return str(path), state


def test_a_training_file_becomes_one_that_runs(
    photo: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source, state = training_file(tmp_path)
    target = tmp_path / "deployed.safetensors"
    assert main(["convert", source, str(target)]) == 0
    assert f"train of {len(state)} entries" in capsys.readouterr().out
    assert json.loads(file_metadata(target)["lipt"])["task"]["scale"] == 4
    merged = load_state_dict(target)
    assert not [name for name in merged if ".dbb_" in name or "project_inp.0" in name]
    results = []
    for file in (source, str(target)):
        output = tmp_path / "large.png"
        assert main(["upscale", photo, "-o", str(output), "--weights", file]) == 0
        results.append(read_image(output))
    assert (results[0] - results[1]).abs().max() <= LEVEL


@pytest.mark.parametrize("layout", ["deploy", "half_converted"])
def test_the_authors_code_gets_a_plain_file(layout: str, tmp_path: Path) -> None:
    source, state = training_file(tmp_path)
    target = tmp_path / "merged.pt"
    assert main(["convert", source, str(target), "--layout", layout]) == 0
    written = torch.load(target, weights_only=True)
    assert any(".dbb_reparam." in name for name in written) == (layout == "half_converted")
    x = 255 * picture(3)[None]
    with torch.no_grad():
        expected = load_official(state)(x)
        torch.testing.assert_close(load_official(written)(x), expected, rtol=1e-4, atol=1e-3)


def test_a_file_of_scale_1_has_to_be_told_its_task(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source, _ = training_file(tmp_path, "denoise")
    target = str(tmp_path / "merged.safetensors")
    assert "name the task" in error_of(capsys, "convert", source, target)
    told = ["--task", "denoise", "--level", "25"]
    assert main(["convert", source, target, *told]) == 0
    assert "exists; give --overwrite" in error_of(capsys, "convert", source, target, *told)
    assert str(load_restorer(target).task) == "colour denoising, sigma 25"
    assert "ends with .safetensors" in error_of(capsys, "convert", source, "merged.onnx")
    assert "is not a folder" in error_of(capsys, "convert", source, str(tmp_path / "no" / "a.pt"))
    back = str(tmp_path / "back.safetensors")
    error = error_of(capsys, "convert", target, back, "--layout", "half_converted")
    assert "cannot become" in error
    assert not Path(back).exists()


# ---- train, eval, export, benchmark


def test_training_writes_what_the_other_commands_take(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(2):
        write_image(picture(3, 40, 36 + 4 * i), folder / f"{i}.png")
    run = tmp_path / "run"
    argv = ["train", "--config", "mini_x4", "--photos", str(folder), "--output", str(run)]
    small = ["--patch", "32", "--batch-size", "2", "--steps", "2", "--validation", ""]
    assert main([*argv, *small]) == 0
    made = str(run / "model.safetensors")
    assert "x4 super-resolution, loss" in capsys.readouterr().out
    scores = tmp_path / "scores.json"
    assert main(["eval", "--weights", made, "--data", str(folder), "--output", str(scores)]) == 0
    found = json.loads(scores.read_text())["sets"][str(folder)]
    assert len(found["images"]) == 2
    assert 0 < found["means"]["psnr"] < 60


def test_training_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--variant is required" in error_of(capsys, "train")
    assert "DIV2K_train_HR" in error_of(capsys, "train", "--config", "tiny_x2", "--validation", "")
    error = error_of(capsys, "train", "--config", "mini_x4", "--variant", "huge")
    assert "no variant 'huge'" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_trains_the_network_it_names(path: Path) -> None:
    config = load_config(TrainConfig, path, {})
    network = VARIANTS[config.variant]
    assert FAMILY.for_task(network, config.to_task()) == network
    assert config.patch // config.scale % network.multiple == 0


@pytest.mark.slow  # a minute of tracing
def test_a_network_becomes_onnx(weights: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    assert main(["export", "--weights", weights, "-o", str(path)]) == 0
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = picture(3)[None]
    with torch.no_grad():
        expected = load_restorer(weights).merge()(x)
    (made,) = session.run(None, {"image": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(made), expected, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_exported_is_refused_before_the_work(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = ["export", "--weights", weights, "-o"]
    assert "ends with .onnx" in error_of(capsys, *argv, str(tmp_path / "model.pt"))
    error = error_of(capsys, *argv, str(tmp_path / "model.onnx"), "--opset", "9")
    assert "opset 9: expected 18 or later" in error


def test_both_forms_are_timed(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "times.json"
    once = ["--size", "64", "48", "--runs", "1", "--warmup", "0", "--output", str(path)]
    assert main(["benchmark", "--weights", weights, "--unmerged", *once]) == 0
    forms = {form["form"]: form for form in json.loads(path.read_text())["forms"]}
    assert forms["merged"]["parameters"] < forms["training form"]["parameters"]
    assert "tiny_x4" in error_of(capsys, "benchmark")


# ---- help


def test_help_and_errors_answer_without_torch() -> None:
    program = (
        "import sys; from lipt.cli import main\n"
        "main(['--help']); main(['convert', '--help']); main(['upscale', '--wieghts', 'a', 'b'])\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "did you mean '--weights'" in done.stderr


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_explains_every_option(verb: str, capsys: pytest.CaptureFixture) -> None:
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    for field in dataclasses.fields(COMMANDS[verb].config):
        assert field.name.replace("_", "-") in out or field.name in out
        assert field.metadata["help"].split()[0] in out
