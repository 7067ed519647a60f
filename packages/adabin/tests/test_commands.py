"""The console script: on bad input one line of error, status 2, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from adabin.cli import main
from adabin.eval import predict_logits
from adabin.model import Config, build
from adabin.pipeline import network_metadata
from papers_shared.checkpoints import save_state_dict
from papers_shared.images import write_image


@pytest.fixture
def network(tmp_path: Path) -> str:
    """A small untrained network in a file of ours."""
    config = Config(num_blocks=(1, 1, 1))
    path = tmp_path / "network.safetensors"
    save_state_dict(build(config).state_dict(), path, metadata=network_metadata(config))
    return str(path)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    write_image(torch.rand(3, 40, 61), path)
    return str(path)


def error_of(capsys: pytest.CaptureFixture, *argv: str) -> str:
    """The error line of a command that must refuse."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return captured.err


def test_predict_names_ten_classes_for_a_photo_of_any_size(network, photo, capsys) -> None:
    assert main(["predict", photo, "--checkpoint", network, "--top", "10"]) == 0
    out = capsys.readouterr().out
    assert "airplane" in out
    assert out.count("%") == 10


def test_predict_takes_grey_and_alpha_pictures(network, tmp_path, capsys) -> None:
    write_image(torch.rand(1, 20, 30), tmp_path / "grey.png")
    write_image(torch.rand(4, 20, 30), tmp_path / "alpha.png")
    paths = [str(tmp_path / name) for name in ("grey.png", "alpha.png")]
    assert main(["predict", *paths, "--checkpoint", network, "--top", "1"]) == 0


def test_a_text_named_png_is_refused(network, tmp_path, capsys) -> None:
    fake = tmp_path / "fake.png"
    fake.write_text("hello")
    assert "fake.png" in error_of(capsys, "predict", str(fake), "--checkpoint", network)


def test_photos_are_read_one_at_a_time(network, photo, tmp_path, capsys) -> None:
    (tmp_path / "unread.png").write_text("hello")
    argv = ["predict", photo, str(tmp_path / "unread.png"), "--checkpoint", network]
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert "photo.png" in captured.out
    assert "unread.png" not in captured.out
    assert "unread.png" in captured.err


def test_an_empty_folder_is_refused(network, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    error = error_of(capsys, "predict", str(tmp_path / "empty"), "--checkpoint", network)
    assert "empty" in error


def test_a_truncated_checkpoint_is_refused(network, photo, tmp_path, capsys) -> None:
    for suffix in (".safetensors", ".pth"):
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes(Path(network).read_bytes()[:1000])
        assert f"cut{suffix}" in error_of(capsys, "predict", photo, "--checkpoint", str(cut))


def test_a_pickle_that_would_run_code_is_refused(photo, tmp_path, capsys) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "trap"),)

    torch.save({"state_dict": Trap()}, tmp_path / "evil.pth")
    error = error_of(capsys, "predict", photo, "--checkpoint", str(tmp_path / "evil.pth"))
    assert "refused" in error
    assert not (tmp_path / "trap").exists()


def test_the_checkpoint_of_another_method_is_refused(photo, tmp_path, capsys) -> None:
    state = build({"num_blocks": [3, 3, 3]}).state_dict()
    recu = {name: value for name, value in state.items() if "binary_a" not in name}
    torch.save({"state_dict": recu}, tmp_path / "recu.pth")
    error = error_of(capsys, "predict", photo, "--checkpoint", str(tmp_path / "recu.pth"))
    assert "not AdaBin's" in error


def test_the_checkpoint_of_another_variant_is_refused(network, photo, tmp_path, capsys) -> None:
    plain = tmp_path / "plain.pth"
    torch.save(build({"num_blocks": [2, 1, 1]}).state_dict(), plain)
    error = error_of(
        capsys, "predict", photo, "--checkpoint", str(plain), "--variant", "cifar10_resnet18"
    )
    assert "another architecture" in error


def test_a_misspelt_key_of_a_configuration_is_answered_with_the_nearest(tmp_path, capsys) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("epocs: 3\n")
    assert "did you mean 'epochs'" in error_of(capsys, "train", "--config", str(file))


def test_an_unknown_variant_is_refused_before_any_data_is_read(tmp_path, capsys) -> None:
    error = error_of(capsys, "train", "--variant", "resnet20", "--output", str(tmp_path / "run"))
    assert "cifar10_resnet20" in error
    assert not (tmp_path / "run").exists()


def test_an_output_that_cannot_be_written_is_refused(network, tmp_path, capsys) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    target = blocked / "packed.safetensors"
    assert "cannot write" in error_of(capsys, "export", str(target), "--checkpoint", network)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "network.safetensors"]


def test_a_packed_file_predicts_like_its_network(network, photo, tmp_path, capsys) -> None:
    packed = tmp_path / "packed.safetensors"
    assert main(["export", str(packed), "--checkpoint", network]) == 0
    assert packed.stat().st_size < Path(network).stat().st_size / 2
    capsys.readouterr()
    outputs = []
    for checkpoint in (network, str(packed)):
        assert main(["predict", photo, "--checkpoint", checkpoint]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


def test_eval_counts_a_folder_of_class_folders(tmp_path, capsys) -> None:
    config = Config("imagenet_resnet", layers=(1, 1, 1, 1), num_classes=6)
    path = tmp_path / "network.safetensors"
    save_state_dict(build(config).state_dict(), path, metadata=network_metadata(config))
    for label in range(6):
        folder = tmp_path / "val" / f"n{label}"
        folder.mkdir(parents=True)
        write_image(torch.rand(3, 50, 70), folder / "a.png")
    result = tmp_path / "result.json"
    argv = ["eval", "--checkpoint", str(path), "--data", str(tmp_path / "val"), "--workers", "0"]
    assert main([*argv, "--output", str(result)]) == 0
    assert json.loads(result.read_text())["top-5"]["of"] == 6
    no_classes = str(tmp_path / "val" / "n0")
    assert "class folders" in error_of(capsys, *argv[:3], "--data", no_classes)
    shutil.rmtree(tmp_path / "val" / "n3")  # the later ids would be one too small
    assert "5 class folders" in error_of(capsys, *argv)


def test_eval_shows_a_cifar_network_a_folder_at_32x32(tmp_path) -> None:
    """Pictures lie in the folder of the class that the network takes them for: all are right."""
    config = Config(num_blocks=(1, 1, 1), num_classes=3)
    model = build(config).eval()
    images = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8)
    model.linear.bias.data -= predict_logits(model, images).mean(0)
    labels = predict_logits(model, images).argmax(1).tolist()
    assert set(labels) == {0, 1, 2}
    for i, label in enumerate(labels):
        (tmp_path / f"n{label}").mkdir(exist_ok=True)
        write_image(images[i], tmp_path / f"n{label}" / f"{i}.png")
    path, result = tmp_path / "network.safetensors", tmp_path / "result.json"
    save_state_dict(model.state_dict(), path, metadata=network_metadata(config))
    argv = ["eval", "--checkpoint", str(path), "--data", str(tmp_path), "--workers", "0"]
    assert main([*argv, "--output", str(result)]) == 0
    assert json.loads(result.read_text()) == {"top-1": {"right": 30, "of": 30}}


def test_a_missing_data_set_says_where_to_get_it(monkeypatch, network, tmp_path, capsys) -> None:
    monkeypatch.delenv("PAPERS_MIRROR", raising=False)
    monkeypatch.setenv("PAPERS_CACHE", str(tmp_path / "cache"))
    empty = tmp_path / "nothing"
    empty.mkdir()
    error = error_of(capsys, "eval", "--checkpoint", network, "--data-path", str(empty))
    assert "cifar-10-python.tar.gz" in error
