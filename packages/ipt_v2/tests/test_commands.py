"""The console script: photos of any kind; on bad input one line of error and status 2."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ipt_v2 import family
from ipt_v2.cli import COMMANDS, main
from ipt_v2.config import TrainConfig
from ipt_v2.model import VARIANTS, build
from papers_shared.checkpoints import file_metadata, load_state_dict, save_state_dict
from papers_shared.cli import load_config
from papers_shared.images import read_image, to_uint8, write_image
from papers_shared.restoration.family import Restorer
from papers_shared.restoration.restore import PhotoRestorer
from papers_shared.restoration.task import Task
from papers_shared.workspace import package_folder

TINY = replace(VARIANTS["cpu_toy"], window_size=2, cell_sizes=(4, 2, 2, 1))  # alignment 16
NOISE = Task("denoise", level=25)


def write_network(folder: Path, task: Task = NOISE) -> str:
    """A tiny network with random weights in a file as training writes it."""
    config = replace(TINY, in_channels=task.channels)
    network = build(config)
    torch.nn.init.normal_(network.output.weight, std=0.02)
    restorer = Restorer(network, config=config, task=task, family=family.FAMILY)
    restorer.save_pretrained(folder)
    return str(folder / "model.safetensors")


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return write_network(tmp_path / "network")


@pytest.fixture
def photo(tmp_path: Path) -> str:
    write_image(torch.rand(3, 17, 31), tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def error_of(capsys: pytest.CaptureFixture, *argv: str) -> str:
    """The error line of a command that must refuse."""
    capsys.readouterr()
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("ipt-v2: error: ")
    return captured.err


# ---- denoise and restore


def test_denoise_gives_what_the_network_gives(photo: str, weights: str, tmp_path: Path) -> None:
    output = str(tmp_path / "clean.png")
    assert main(["denoise", photo, "-o", output, "--weights", weights]) == 0
    x = read_image(photo)
    with torch.no_grad():
        wanted = to_uint8(family.load_restorer(weights).merge()(x[None])[0].clamp(0, 1))
    made = to_uint8(read_image(output))
    assert made.shape == (3, 17, 31)
    assert (made.int() - wanted.int()).abs().max() <= 1
    assert (made.int() - to_uint8(x).int()).abs().max() > 1


def test_grey_stays_grey_and_alpha_stays_beside_the_colours(weights: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    rgba = torch.rand(4, 17, 31)
    write_image(rgba, folder / "alpha.png")
    write_image(rgba[:1], folder / "grey.png")
    assert main(["denoise", str(folder), "-o", str(tmp_path / "out"), "--weights", weights]) == 0
    made = {p.name: to_uint8(read_image(p, mode="stored")) for p in (tmp_path / "out").iterdir()}
    assert made["grey.png"].shape == (1, 17, 31)
    assert torch.equal(made["alpha.png"][3], to_uint8(rgba)[3])


def test_a_grid_is_another_result_where_the_tile_is_larger_than_16_cells(
    weights: str, tmp_path: Path
) -> None:
    write_image(torch.rand(3, 80, 80), tmp_path / "photo.png")
    made = {}
    for regime in ("cells", "grid"):
        output = tmp_path / f"{regime}.png"
        argv = ["denoise", str(tmp_path / "photo.png"), "-o", str(output), "--weights", weights]
        assert main([*argv, "--regime", regime, "--tile", "96"]) == 0
        made[regime] = read_image(output)
    restorer = family.load_restorer(weights)
    restorer.network.set_regime("grid")
    with torch.no_grad():
        grid = restorer(read_image(tmp_path / "photo.png")[None])[0].clamp(0, 1)
    assert (made["grid"] - grid).abs().max() < 1.01 / 255
    assert (made["cells"] - grid).abs().mean() > (made["grid"] - grid).abs().mean()


def test_restore_does_what_the_weights_are_made_for(
    photo: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rain = write_network(tmp_path / "rain", Task("derain"))
    assert main(["restore", photo, "--weights", rain]) == 0
    assert Path(photo).with_name("photo_derained.png").is_file()
    error = error_of(capsys, "denoise", photo, "--weights", rain)
    assert "made for deraining; give --weights of one for denoise" in error
    error = error_of(capsys, "restore", photo, "--weights", rain, "--task", "deblur")
    assert "made for deraining; give --weights of one for deblur" in error


def test_restore_says_what_it_needs(photo: str, capsys: pytest.CaptureFixture) -> None:
    error = error_of(capsys, "restore", photo)
    assert "restore needs --weights, a file that train wrote" in error
    assert "neither code nor weights" in error
    assert "deraining_rain13k" in error


def test_a_state_dict_alone_is_recognised_and_needs_its_task(
    photo: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    network = build(VARIANTS["cpu_toy"])
    file = tmp_path / "params.pth"
    torch.save({"params": network.state_dict()}, file)
    assert family.recognise(network.state_dict()) == VARIANTS["cpu_toy"]
    merged = family.merge(network).state_dict()
    assert family.recognise(merged) == VARIANTS["cpu_toy"].merged()
    assert family.recognise({"x": torch.zeros(1)}) is None
    error = error_of(capsys, "restore", photo, "--weights", str(file))
    assert "does not say what it undoes; name the task" in error
    assert main(["restore", photo, "--weights", str(file), "--task", "deblur"]) == 0
    assert Path(photo).with_name("photo_deblurred.png").is_file()


def test_the_shipped_network_is_announced_as_such(
    photo: str, weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(type(family.FAMILY), "path_of", lambda self, name: Path(weights))
    assert main(["denoise", photo]) == 0
    assert "mini_denoise_25, the small network trained here" in capsys.readouterr().out


def test_20_megapixels_stay_within_8_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("papers_shared.restoration.restore.available_memory", lambda _: 6 << 30)
    network = build(VARIANTS["mini"]).eval().requires_grad_(False)
    restorer = Restorer(network, config=VARIANTS["mini"], task=NOISE, family=family.FAMILY)
    estimate = PhotoRestorer(restorer).estimate(4000, 5000)
    assert estimate.bytes + estimate.host_bytes_per_sample * 3 * 20_000_000 < 8e9
    assert estimate.tiles > 1


# ---- the other commands


def test_eval_measures_a_folder_and_says_the_regime(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "set").mkdir()
    for name in ("a", "b"):
        write_image(torch.rand(3, 20, 33), tmp_path / "set" / f"{name}.png")
    argv = ["eval", "--weights", weights, "--data", str(tmp_path / "set")]
    assert main([*argv, "--first", "1", "--output", str(tmp_path / "scores.json")]) == 0
    out = capsys.readouterr().out
    assert "regime cells, whole pictures" in out
    assert "1 pictures" in out
    told = json.loads((tmp_path / "scores.json").read_text())
    (scores,) = told["sets"].values()
    assert scores["images"].keys() == {"a"}
    assert 5 < scores["means"]["psnr"] < 40


def test_benchmark_times_both_forms(tmp_path: Path) -> None:
    output = tmp_path / "times.json"
    argv = ["benchmark", "--variant", "cpu_toy", "--size", "64", "64", "--runs", "1"]
    assert main([*argv, "--warmup", "0", "--unmerged", "--output", str(output)]) == 0
    forms = json.loads(output.read_text())["forms"]
    assert [form["parameters"] for form in forms] == [283_604, 248_340]


def test_export_refuses_what_it_cannot_write(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = ["export", "--weights", weights, "-o"]
    assert "ends with .onnx" in error_of(capsys, *argv, str(tmp_path / "model.pt"))
    error = error_of(capsys, *argv, str(tmp_path / "a.onnx"), "--opset", "9")
    assert "opset 9" in error


@pytest.mark.parametrize(
    "name", sorted(p.stem for p in (package_folder("ipt_v2") / "configs").glob("*.yaml"))
)
def test_every_recipe_is_one_of_a_network_we_have_with_crops_that_cells_divide(name: str) -> None:
    path = package_folder("ipt_v2") / "configs" / f"{name}.yaml"
    config = load_config(TrainConfig, path, {})
    network = family.for_task(VARIANTS[config.variant], config.to_task())
    assert network == VARIANTS[config.variant]
    assert all(stage.patch % 64 == 0 for stage in config.stages)
    assert bool(config.mixup) == (config.task in ("denoise", "real_denoise") and "mini" not in name)


def test_training_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = ["--output", str(tmp_path / "run")]
    error = error_of(capsys, "train", "--config", "deblurring_gopro", *run)
    assert "train/GoPro" in error
    error = error_of(capsys, "train", "--variant", "t", "--scale", "2", *run)
    assert "do not enlarge" in error
    error = error_of(capsys, "train", "--config", "mini_denoise_25", "--variant", "xl", *run)
    assert "no variant 'xl'; known: b, s, t" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "nowhere.safetensors"], "no weights at nowhere.safetensors"),
        (["--regime", "rows"], "regime is 'rows'; known: cells, grid"),
        (["--tile", "0"], "tile"),
        (["--wieghts", "a"], "unknown option --wieghts, did you mean '--weights'?"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_options_without_meaning_are_refused(
    photo: str, weights: str, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    assert message in error_of(capsys, "denoise", photo, "--weights", weights, *options)


def test_weights_with_nan_are_refused(
    photo: str, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    state = load_state_dict(weights)
    state["output.weight"][0, 0, 0, 0] = torch.nan
    broken = tmp_path / "broken.safetensors"
    save_state_dict(state, broken, metadata=file_metadata(weights))
    error = error_of(capsys, "denoise", photo, "--weights", str(broken))
    assert "hold NaN or infinity (output.weight first)" in error


def test_help_and_errors_answer_without_torch() -> None:
    lines = ["import sys", "from ipt_v2.cli import main"]
    for argv in (["--help"], ["denoise", "--help"], ["denoise", "--wieghts", "a", "b"]):
        lines.append(f"main({argv!r})")
    lines.append("assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--regime" in done.stdout
    assert "unknown option --wieghts" in done.stderr


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_explains_every_option(verb: str, capsys: pytest.CaptureFixture) -> None:
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    for field in dataclasses.fields(COMMANDS[verb].config):
        assert field.name.replace("_", "-") in out or field.name in out
        assert field.metadata["help"].split()[0] in out
