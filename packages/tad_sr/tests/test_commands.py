"""The console script: photos of any kind; on bad input one line of error and status 2."""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from papers_shared.checkpoints import file_metadata, load_state_dict, save_state_dict
from papers_shared.diffusion import vq
from papers_shared.images import read_image, write_image
from tad_sr import family
from tad_sr.cli import COMMANDS, main
from tad_sr.discriminator import discriminator_for
from tad_sr.model import VARIANTS, Config, build

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
tiny = importlib.import_module("tiny_tad_sr")


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """A tiny student in a file as training writes it."""
    return str(tiny.write_network(tmp_path / "student.safetensors"))


@pytest.fixture
def photo(tmp_path: Path) -> str:
    write_image(tiny.photo(9, 21), tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def error_of(capsys: pytest.CaptureFixture, *argv: str) -> str:
    """The error line of a command that must refuse."""
    capsys.readouterr()
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("tad-sr: error: ")
    return captured.err


# ---- upscale


def test_a_photo_becomes_four_times_as_large_in_one_step(
    photo: str, weights: str, tmp_path: Path
) -> None:
    output = tmp_path / "large.png"
    assert main(["upscale", photo, "-o", str(output), "--weights", weights]) == 0
    large = read_image(output)
    assert large.shape == (3, 36, 84)
    assert main(["upscale", photo, "-o", str(output), "--weights", weights, "--steps", "1"]) == 0
    assert torch.equal(read_image(output), large)
    assert main(["upscale", photo, "-o", str(output), "--weights", weights, "--steps", "15"]) == 0
    assert not torch.equal(read_image(output), large)


def test_without_an_output_the_result_lies_beside_the_photo(photo: str, weights: str) -> None:
    assert main(["upscale", photo, "--weights", weights]) == 0
    assert read_image(Path(photo).with_name("photo_x4.png")).shape == (3, 36, 84)


def test_a_folder_gives_a_folder_whose_pictures_do_not_depend_on_company(
    weights: str, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    write_image(tiny.photo(8, 8), folder / "a.png")
    write_image(tiny.photo(5, 12)[:1], folder / "b.png")
    assert main(["upscale", str(folder), "-o", str(tmp_path / "all"), "--weights", weights]) == 0
    grey = read_image(tmp_path / "all" / "b.png", mode="stored")
    assert grey.shape == (1, 20, 48)
    alone = ["upscale", str(folder / "a.png"), "-o", str(tmp_path / "alone.png")]
    assert main([*alone, "--weights", weights]) == 0
    assert torch.equal(read_image(tmp_path / "alone.png"), read_image(tmp_path / "all" / "a.png"))


def test_a_teacher_takes_all_its_steps(photo: str, tmp_path: Path) -> None:
    teacher = str(tiny.write_teacher(tmp_path / "teacher.safetensors", num_train_timesteps=4))
    output = str(tmp_path / "large.png")
    assert main(["upscale", photo, "-o", output, "--weights", teacher]) == 0
    large = read_image(output)
    assert main(["upscale", photo, "-o", output, "--weights", teacher, "--steps", "4"]) == 0
    assert torch.equal(read_image(output), large)


def test_the_authors_layout_needs_its_autoencoder_named(
    photo: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    state = {f"module.{n}": v for n, v in tiny.weights(VARIANTS["small"]).items()}
    compiled = {
        n.replace(".middle_block.0.", ".middle_block.0._orig_mod."): state[n] for n in state
    }
    torch.save({"state_dict": compiled, "iters_start": 7}, tmp_path / "small.pth")
    argv = ["upscale", photo, "--weights", str(tmp_path / "small.pth")]
    assert "without its autoencoder; give it: --autoencoder" in error_of(capsys, *argv)
    assert main([*argv, "--autoencoder", "small", "-o", str(tmp_path / "large.png")]) == 0


def test_the_shipped_network_is_announced_with_where_the_authors_is_had(
    photo: str, weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shipped = {"small": Path(weights)}
    monkeypatch.setattr(
        type(family.FAMILY), "shipped", lambda self, name: shipped.get(name, Path(name))
    )
    assert main(["upscale", photo]) == 0
    assert "TAD-SR.pth" in capsys.readouterr().out


# ---- what upscale refuses


def meta_state(config: Config) -> dict[str, torch.Tensor]:
    """Names and shapes of a network; zeros that take no memory."""
    with torch.device("meta"):
        shapes = {n: v.shape for n, v in build(config).state_dict().items()}
    return {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}


def refused(capsys: pytest.CaptureFixture, state: Any, photo: str, *options: str) -> str:
    """The error for a file of weights."""
    path = Path(photo).with_name("given.pth")
    torch.save(state, path)
    error = error_of(capsys, "upscale", photo, "--weights", str(path), *options)
    assert not Path(photo).with_name("photo_x4.png").exists()
    return error


@pytest.mark.parametrize("options", [[], ["--variant", "realsr"]])
def test_a_dit_sr_checkpoint_is_sent_to_dit_sr(
    photo: str, capsys: pytest.CaptureFixture, options: Sequence[str]
) -> None:
    name = "input_blocks.1.1.blocks.0.adaLN_scale_msa.1.weight"
    state = meta_state(VARIANTS["realsr"]) | {name: torch.zeros(1)}
    error = refused(capsys, state, photo, *options)
    assert "a DiT-SR checkpoint; dit-sr upscale takes it" in error


@pytest.mark.parametrize("options", [[], ["--variant", "realsr"]])
def test_an_autoencoder_is_no_network(
    photo: str, capsys: pytest.CaptureFixture, options: Sequence[str]
) -> None:
    with torch.device("meta"):
        official = vq.to_official(vq.build(vq.F4))
    state = {name: torch.zeros(1).expand(value.shape) for name, value in official.items()}
    assert "a VQ autoencoder's" in refused(capsys, state, photo, *options)


def test_the_small_autoencoder_is_no_network(photo: str, capsys: pytest.CaptureFixture) -> None:
    file = Path(vq.__file__).parents[1] / "weights" / "autoencoder_f4.safetensors"
    error = error_of(capsys, "upscale", photo, "--weights", str(file))
    assert "fits none of realsr, faceir, small" in error


def test_a_discriminator_is_no_network(photo: str, capsys: pytest.CaptureFixture) -> None:
    state = discriminator_for(tiny.TINY, c_dim=4).state_dict()
    assert "a discriminator's; it serves training alone" in refused(capsys, state, photo)


@pytest.mark.parametrize(
    ("given", "asked", "autoencoder"),
    [("faceir", "realsr", []), ("realsr", "faceir", ["--autoencoder", "small"])],
    ids=["faceir", "realsr"],
)
def test_another_variant_is_named(
    photo: str,
    capsys: pytest.CaptureFixture,
    given: str,
    asked: str,
    autoencoder: Sequence[str],
) -> None:
    state = meta_state(VARIANTS[given])
    error = refused(capsys, state, photo, "--variant", asked, *autoencoder)
    assert f"of variant {given!r}, not {asked!r}; choose variant {given!r}" in error


def test_an_autoencoder_of_other_channels_is_refused(
    photo: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny.tiny(in_channels=3, out_channels=3)
    monkeypatch.setitem(VARIANTS, "tiny", other)
    monkeypatch.setitem(family.SCHEDULERS, "tiny", family.STUDENT)
    error = refused(capsys, tiny.weights(other), photo, "--autoencoder", "small")
    assert "12 latent channels, the network takes 3" in error


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_with_nan_are_refused(
    photo: str, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture, value: float
) -> None:
    state = load_state_dict(weights)
    state["out.2.bias"][0] = value
    broken = tmp_path / "broken.safetensors"
    save_state_dict(state, broken, metadata=file_metadata(weights))
    error = error_of(capsys, "upscale", photo, "--weights", str(broken))
    assert "hold NaN or infinity (out.2.bias first)" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "TAD-SR.pth"], "no weights at TAD-SR.pth; the authors' weights"),
        (["--autoencoder", "nowhere.pth"], "no checkpoint at nowhere.pth"),
        (["--steps", "16"], "from 1 to 15"),
        (["--wieghts", "a"], "unknown option --wieghts, did you mean '--weights'?"),
        (["--seed", "x"], "seed is 'x', expected int"),
        (["-o", "missing/dir.txt/a.png"], "missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_options_without_meaning_are_refused(
    photo: str,
    weights: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "missing").write_text("a file where a folder should be")
    assert message in error_of(capsys, "upscale", photo, "--weights", weights, *options)


def test_a_photo_that_is_not_there_is_refused(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    error = error_of(capsys, "upscale", str(tmp_path / "a.png"), "--weights", weights)
    assert "a.png does not exist" in error


# ---- eval


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return tiny.write_pairs(tmp_path / "pairs", count=3, side=8)


def test_eval_scores_what_upscale_writes(
    pairs: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    results = tmp_path / "results"
    argv = ["eval", "--data", str(pairs), "--weights", weights, "--metrics", "psnr", "ssim"]
    assert main([*argv, "--first", "2", "--output", str(results)]) == 0
    assert "2 pictures" in capsys.readouterr().out
    told = json.loads((results / "metrics.json").read_text())
    assert told["images"].keys() == {"p0", "p1"}
    assert 0 < told["means"]["psnr"] < 60
    large = tmp_path / "p1.png"
    photo = str(pairs / "lq" / "p1.png")
    assert main(["upscale", photo, "-o", str(large), "--weights", weights]) == 0
    assert torch.equal(read_image(large), read_image(results / "p1.png"))


def test_eval_of_photos_without_references_takes_metrics_of_single_pictures(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    tiny.write_photos(tmp_path / "photos", count=1, side=50)
    argv = ["eval", "--data", str(tmp_path / "photos"), "--weights", weights, "--metrics"]
    enlarged = []
    monkeypatch.setattr(
        "papers_shared.diffusion.evaluate.write_image", lambda *_: enlarged.append(1)
    )
    error = error_of(capsys, *argv, "psnr")
    assert "psnr compares with references" in error
    assert "neither gt/ nor hq/" in error
    monkeypatch.setitem(sys.modules, "basicsr.metrics.niqe", None)
    error = error_of(capsys, *argv, "niqe")
    assert "papers-shared[basicsr]" in error or "Python 3.11 or 3.12" in error
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    assert "pyiqa" in error_of(capsys, *argv, "clipiqa")
    assert "unknown metric 'nique'" in error_of(capsys, *argv, "nique")
    assert not enlarged  # all of that is told before the work, not after it


def test_eval_of_photos_without_references_measures_niqe(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("basicsr.metrics.niqe")
    tiny.write_photos(tmp_path / "photos", count=1, side=50)
    argv = ["eval", "--data", str(tmp_path / "photos"), "--weights", weights]
    assert main([*argv, "--metrics", "niqe"]) == 0
    assert "niqe: " in capsys.readouterr().out


def test_eval_keeps_its_hands_off_other_pictures(
    pairs: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = ["eval", "--data", str(pairs), "--weights", weights, "--metrics", "psnr", "--output"]
    before = (pairs / "lq" / "p0.png").read_bytes()
    for folder in (pairs, pairs / "lq", pairs / "gt"):
        assert "holds the data" in error_of(capsys, *argv, str(folder))
    assert (pairs / "lq" / "p0.png").read_bytes() == before
    results = tmp_path / "results"
    results.mkdir()
    write_image(tiny.photo(32, 32), results / "other.png")
    error = error_of(capsys, *argv, str(results))
    assert "other.png is none of the pictures to be measured" in error


def test_eval_of_a_folder_that_is_not_there_is_refused(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    error = error_of(capsys, "eval", "--data", str(tmp_path / "no"), "--weights", weights)
    assert "no" in error


# ---- the others, and help


def test_training_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert "--teacher is required" in error_of(capsys, "train")
    run = ["--output", str(tmp_path / "run")]
    error = error_of(capsys, "train", "--config", "realsr", *run)
    assert "no weights at resshift_realsrx4_s15_v1.pth" in error
    error = error_of(capsys, "train", "--config", "small", "--distill-type", "hsd", *run)
    assert "distill_type is 'hsd'; known: HSD, SDS, none" in error
    error = error_of(capsys, "train-teacher", "--config", "teacher", "--variant", "x4", *run)
    assert "no variant 'x4'" in error
    assert not (tmp_path / "run").exists()


def test_help_and_errors_answer_without_torch() -> None:
    program = (
        "import sys; from tad_sr.cli import main; main({!r}); assert 'torch' not in sys.modules"
    )
    for argv in (["--help"], ["train", "--help"], ["upscale", "--wieghts", "a", "b"]):
        done = subprocess.run(
            [sys.executable, "-c", program.format(argv)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "tad-sr" in done.stdout + done.stderr


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_explains_every_option(verb: str, capsys: pytest.CaptureFixture) -> None:
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    for field in dataclasses.fields(COMMANDS[verb].config):
        assert field.name.replace("_", "-") in out or field.name in out
        assert field.metadata["help"].split()[0] in out
