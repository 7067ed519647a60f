"""The console script: photos of any kind; on bad input one line of error and status 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dit_sr.cli import main
from papers_shared.checkpoints import file_metadata, load_state_dict, save_state_dict
from papers_shared.images import read_image, write_image


def error_of(capsys: pytest.CaptureFixture, *argv: str) -> str:
    """The error line of a command that must refuse."""
    capsys.readouterr()
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("dit-sr: error: ")
    return captured.err


def upscaled(photo: str | Path, weights: str, output: Path, *options: str) -> Tensor:
    argv = ["upscale", str(photo), "-o", str(output), "--weights", weights, *options]
    assert main(argv) == 0
    return read_image(output, mode="stored")


# --- upscale


def test_a_photo_becomes_four_times_as_large(photo: str, weights: str, tmp_path: Path) -> None:
    large = upscaled(photo, weights, tmp_path / "large.png")
    assert large.shape == (3, 36, 84)
    assert large.std() > 0.01


@pytest.mark.parametrize("size", [(1, 1), (40, 3)])
def test_photos_of_any_size(weights: str, tmp_path: Path, size: tuple[int, int]) -> None:
    write_image(torch.rand(3, *size), tmp_path / "a.png")
    large = upscaled(tmp_path / "a.png", weights, tmp_path / "b.png", "--steps", "2")
    assert large.shape == (3, 4 * size[0], 4 * size[1])


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_stays_grey_and_transparent_transparent(
    weights: str, tmp_path: Path, channels: int
) -> None:
    write_image(torch.rand(channels, 6, 8), tmp_path / "a.png")
    large = upscaled(tmp_path / "a.png", weights, tmp_path / "b.png", "--steps", "2")
    assert large.shape == (channels, 24, 32)


def test_sixteen_bits_stay_sixteen_bits(weights: str, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    write_image(torch.rand(3, 6, 8), tmp_path / "a.png", bits=16)
    levels = upscaled(tmp_path / "a.png", weights, tmp_path / "b.png", "--steps", "2") * 255
    assert (levels - levels.round()).abs().max() > 0.01


def test_a_folder_gives_a_folder_and_a_broken_photo_status_1(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        write_image(torch.rand(3, 5, 5), tmp_path / "photos" / f"{name}.png")
    argv = ["upscale", str(tmp_path / "photos"), "--weights", weights, "--steps", "2"]
    assert main(argv) == 0
    assert sorted(p.name for p in (tmp_path / "photos_x4").iterdir()) == ["a.png", "b.png"]
    (tmp_path / "photos" / "c.png").write_text("hello")
    capsys.readouterr()
    assert main(argv) == 1
    assert "1 of 3 photos failed" in capsys.readouterr().err


def test_the_same_seed_writes_the_same_file(photo: str, weights: str, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        upscaled(photo, weights, tmp_path / f"{name}.png", "--seed", seed)
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_a_smaller_enlargement_and_matched_colours(
    photo: str, weights: str, tmp_path: Path
) -> None:
    options = ("--scale", "2", "--colour", "wavelet", "--precision", "bfloat16", "--tile", "16")
    large = upscaled(photo, weights, tmp_path / "b.png", *options)
    assert large.shape == (3, 18, 42)
    mean = read_image(photo).mean((1, 2))
    torch.testing.assert_close(large.mean((1, 2)), mean, atol=0.03, rtol=0)


# --- what upscale refuses


def test_a_photo_that_cannot_be_read_is_refused(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fake = tmp_path / "fake.png"
    fake.write_text("hello")
    assert "fake.png" in error_of(capsys, "upscale", str(fake), "--weights", weights)
    missing = str(tmp_path / "missing.png")
    assert "missing.png does not exist" in error_of(
        capsys, "upscale", missing, "--weights", weights
    )


def test_missing_weights_say_where_they_are_had(
    photo: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    error = error_of(capsys, "upscale", photo, "--weights", str(tmp_path / "realsr.pth"))
    assert "github.com/kunncheng/DiT-SR" in error


def test_weights_with_nan_are_refused(
    photo: str, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    state = load_state_dict(weights)
    state["out.2.bias"][0] = torch.nan
    save_state_dict(state, tmp_path / "nan.safetensors", metadata=file_metadata(weights))
    error = error_of(capsys, "upscale", photo, "--weights", str(tmp_path / "nan.safetensors"))
    assert "NaN or infinity (out.2.bias first)" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "5"], "from 1 to 4"),
        (["--steps", "0"], "from 1 to 4"),
        (["--scale", "5"], "scale 5 is not below"),
        (["--tile", "0"], "tile 0"),
        (["--device", "cpu", "--precision", "float16"], "float16 is for GPUs"),
        (["--max-pixels", "100"], "--max-pixels 100"),
        (["--stpes", "3"], "did you mean '--steps'"),
        (["--autoencoder", "nowhere.pth"], "no checkpoint at nowhere.pth"),
    ],
)
def test_options_without_meaning_are_refused(
    photo: str, weights: str, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    assert message in error_of(capsys, "upscale", photo, "--weights", weights, *options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_told(photo: str, weights: str, capsys: pytest.CaptureFixture) -> None:
    error = error_of(capsys, "upscale", photo, "--weights", weights, "--device", "cuda")
    assert "use --device cpu" in error


# --- eval


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    for folder in ("lq", "gt"):
        (tmp_path / "pairs" / folder).mkdir(parents=True)
    for name in ("a", "b"):
        write_image(torch.rand(3, 4, 5), tmp_path / "pairs" / "lq" / f"{name}.png")
        write_image(torch.rand(3, 16, 20), tmp_path / "pairs" / "gt" / f"{name}.png")
    return tmp_path / "pairs"


def evaluation(pairs: Path, weights: str, *options: str) -> list[str]:
    argv = ["eval", "--data", str(pairs), "--weights", weights, "--steps", "2", "--tile", "16"]
    return [*argv, "--metrics", "psnr", "ssim", *options]


def test_eval_scores_the_pictures_that_upscale_writes(
    pairs: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(evaluation(pairs, weights, "--output", str(tmp_path / "scores"))) == 0
    out = capsys.readouterr().out
    assert "2 pictures" in out
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert f"psnr: {scores['means']['psnr']:.4f}" in out
    mean = (scores["images"]["a"]["psnr"] + scores["images"]["b"]["psnr"]) / 2
    assert scores["means"]["psnr"] == pytest.approx(mean)
    written = read_image(tmp_path / "scores" / "a.png")
    large = upscaled(
        pairs / "lq" / "a.png", weights, tmp_path / "a.png", "--steps", "2", "--tile", "16"
    )
    assert torch.equal(written, large)


def test_eval_takes_the_first_pairs_only(
    pairs: Path, weights: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(evaluation(pairs, weights, "--first", "1")) == 0
    assert "1 pictures" in capsys.readouterr().out


def test_eval_of_other_weights_does_not_score_the_pictures_of_the_first(
    pairs: Path, weights: str, tmp_path: Path
) -> None:
    output = ("--output", str(tmp_path / "scores"))
    assert main(evaluation(pairs, weights, *output)) == 0
    first = (tmp_path / "scores" / "metrics.json").read_text()
    assert main(evaluation(pairs, weights, *output, "--seed", "1")) == 0
    assert (tmp_path / "scores" / "metrics.json").read_text() != first


def test_eval_refuses_pictures_without_partner_and_unknown_metrics(
    pairs: Path, weights: str, capsys: pytest.CaptureFixture
) -> None:
    assert "unknown metric 'pnsr'" in error_of(
        capsys, *evaluation(pairs, weights, "--metrics", "pnsr")
    )
    (pairs / "gt" / "b.png").rename(pairs / "gt" / "c.png")
    assert "has no partner b.*" in error_of(capsys, *evaluation(pairs, weights))


# --- train


def test_an_unknown_variant_is_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = str(tmp_path / "run")
    error = error_of(capsys, "train", "--variant", "realsr_x2", "--output", run)
    assert "no variant 'realsr_x2'; known: realsr" in error
    assert not (tmp_path / "run").exists()


def test_a_named_configuration_is_found(capsys: pytest.CaptureFixture) -> None:
    error = error_of(capsys, "train", "--config", "smal")
    assert "named ones:" in error
    assert "small" in error
