"""The index: layouts, broken files, resuming, shards; and the metrics."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from genimage import index as indexing
from genimage.index import NAME, build_index, open_index, read_index
from genimage.layout import canonical
from genimage.metrics import average_precision, best_balanced, roc_auc, score, wilson


def test_all_three_layouts_and_any_case_of_suffixes(data: Path) -> None:
    inner = data / "ADM" / "imagenet_ai_0508_adm"
    inner.mkdir()
    for mode in ("train", "val"):
        (data / "ADM" / mode).rename(inner / mode)
    flat = data / "flat" / "ai"
    flat.mkdir(parents=True)
    (data / "home_made" / "val" / "ai" / "000_tag_00000.PNG").rename(flat / "x.png")
    index = open_index(data)
    assert index.subsets == ["ADM", "flat", "home_made"]
    assert len(index.entries) == 96
    assert [e.mode for e in index.select(subsets=["flat"])] == ["val"]
    assert {e.class_id for e in index.select(subsets=["ADM"], label=1)} == set(range(12))
    assert {e.quality for e in index.select(label=0)} == {96}


def test_table_and_folder_names_of_generators_mean_the_same() -> None:
    assert canonical("imagenet_ai_0419_sdv4") == canonical("sd v1.4") == "SD V1.4"
    assert canonical("my own") == "my own"


def test_empty_and_broken_files_are_listed_and_left_out(data: Path) -> None:
    folder = data / "ADM" / "train" / "ai"
    (folder / "033_sdv4_00134.png").touch()
    (folder / "033_sdv4_00137.png").write_bytes(b"not a picture")
    whole = (folder / "000_tag_00000.PNG").read_bytes()
    (folder / "033_sdv4_00152.png").write_bytes(whole[: len(whole) // 2])
    index = open_index(data)
    assert [e.status for e in index.bad] == ["the file is empty", "not a picture in a known format"]
    with pytest.raises(ValueError, match="2 of 99"):
        index.refuse_if_broken(0.01)
    with pytest.raises(ValueError, match="2 of 51"):
        index.refuse_if_broken(0.01, subsets=["adm"])
    index.refuse_if_broken(0.5)
    # What is not used does not count.
    index.refuse_if_broken(0.01, subsets=["home_made"])
    index.refuse_if_broken(0.01, mode="val")
    # The truncated one has a whole header: decoding finds it.
    assert len(open_index(data, verify=True, rebuild=True).bad) == 3


def test_a_link_to_nowhere_is_listed(data: Path) -> None:
    (data / "ADM" / "train" / "ai" / "linked.png").symlink_to(data / "nowhere.png")
    index = open_index(data)
    assert len(index.entries) == 96
    assert [(e.path, e.bytes) for e in index.bad] == [("ADM/train/ai/linked.png", 0)]
    assert "No such file" in index.bad[0].status


def test_an_interrupted_build_goes_on_behind_its_last_whole_line(data, monkeypatch) -> None:
    path = data / NAME
    opened: list[object] = []
    original = indexing.open_header

    def stops(source: object) -> object:
        opened.append(source)
        if len(opened) == 30:
            raise KeyboardInterrupt
        return original(source)

    monkeypatch.setattr(indexing, "open_header", stops)
    with pytest.raises(KeyboardInterrupt):
        build_index(data, path)
    assert not path.exists()
    part = path.with_name(path.name + ".part")
    with part.open("ab") as stream:
        stream.write(b"ADM/train/na")  # a torn line, as a killed process leaves it
    opened.clear()
    opened.extend(range(31))
    counts = build_index(data, path)
    assert counts["resumed"] == 29
    assert len(opened) == 31 + 96 - 29 + 1  # the last one is looked at again
    resumed = list(read_index(path))
    build_index(data, path, restart=True)
    assert resumed == list(read_index(path))


def test_processes_that_start_together_build_one_index(data: Path) -> None:
    code = "import sys, genimage; print(len(genimage.open_index(sys.argv[1]).entries))"
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(data)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [process.communicate()[0].strip() for process in started] == ["96"] * 4
    lines = (data / NAME).read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines)) == 97


def test_a_folder_that_changed_is_indexed_anew(data: Path) -> None:
    assert len(open_index(data).entries) == 96
    os.utime(data / NAME, (time.time() - 100,) * 2)
    (data / "ADM" / "val" / "ai" / "000_tag_00000.PNG").unlink()
    assert len(open_index(data).entries) == 95


def test_a_generator_moved_here_or_away_with_its_old_dates_is_noticed(data, tmp_path) -> None:
    away = tmp_path / "away"
    (data / "home_made").rename(away)
    assert open_index(data).subsets == ["ADM"]
    away.rename(data / "home_made")  # its folders are older than the index
    assert open_index(data).subsets == ["ADM", "home_made"]
    (data / "home_made").rename(away)
    assert open_index(data).subsets == ["ADM"]


def test_a_file_unpacked_into_a_folder_that_keeps_its_date_is_noticed(data: Path) -> None:
    folder = data / "ADM" / "val" / "ai"
    assert len(open_index(data).entries) == 96
    stamp = folder.stat()
    (folder / "new.png").write_bytes((folder / "000_tag_00000.PNG").read_bytes())
    os.utime(folder, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert len(open_index(data).entries) == 97


def test_verify_builds_anew_what_was_not_verified_and_only_that(data, monkeypatch) -> None:
    whole = (data / "ADM" / "train" / "ai" / "000_tag_00000.PNG").read_bytes()
    (data / "ADM" / "train" / "ai" / "cut.png").write_bytes(whole[: len(whole) // 2])
    assert len(open_index(data).bad) == 0
    assert len(open_index(data, verify=True).bad) == 1
    monkeypatch.setattr(indexing, "build_index", None)  # from here on nothing is built
    assert len(open_index(data, verify=True).bad) == len(open_index(data).bad) == 1


def test_an_interrupted_build_of_a_root_that_shrank_is_no_index(data, monkeypatch) -> None:
    path = data / NAME
    monkeypatch.setattr(Path, "replace", lambda *_: None)  # leaves .part, with every file
    build_index(data, path)
    monkeypatch.undo()
    shutil.rmtree(data / "home_made")
    with pytest.raises(ValueError, match=r"changed since .* --reindex"):
        open_index(data)
    assert len(open_index(data, rebuild=True).entries) == 48


def test_verify_does_not_go_on_behind_a_build_that_did_not_decode(data, monkeypatch) -> None:
    monkeypatch.setattr(Path, "replace", lambda *_: None)
    build_index(data, data / NAME)
    monkeypatch.undo()
    assert {e.status for e in open_index(data, verify=True).entries} == {"decoded"}


def test_the_index_of_a_folder_that_cannot_be_written_lies_in_the_cache(data, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert open_index(data).path.parent.name == "genimage"
    assert not (data / NAME).exists()


def test_shards_hold_the_same_files(data: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "shard-0.tar", "w") as archive:
        for path in sorted(data.rglob("*.*")):
            archive.add(path, path.relative_to(data).as_posix())
    plain, packed = open_index(data), open_index(shards)
    assert [e.path for e in packed.entries] == sorted(e.path for e in plain.entries)
    entry = packed.entries[7]
    assert entry.read(shards) == (data / entry.path).read_bytes()


def test_a_tar_that_is_not_whole_is_named(data: Path, tmp_path: Path) -> None:
    shard = tmp_path / "shards" / "shard-0.tar"
    shard.parent.mkdir()
    with tarfile.open(shard, "w") as archive:
        for path in sorted(data.rglob("*.*")):
            archive.add(path, path.relative_to(data).as_posix())
    with tarfile.open(shard) as archive:
        middle = archive.getmembers()[40]
    whole = shard.read_bytes()
    # In a file's contents, in a header, between two files.
    for end in (middle.offset_data + 100, middle.offset + 100, middle.offset):
        shard.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"shard-0\.tar is not a whole tar"):
            open_index(shard.parent)


def test_a_folder_without_the_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layout"):
        open_index(tmp_path)
    with pytest.raises(FileNotFoundError, match="GENERATOR"):
        open_index(tmp_path / "nowhere")


def test_a_generator_that_is_not_there_is_named(data: Path) -> None:
    with pytest.raises(ValueError, match="no generator 'BigGAN'; it has ADM, home_made"):
        open_index(data).select(subsets=["biggan"])


# --- metrics ---


def test_perfect_and_one_sided_detectors() -> None:
    labels = [0] * 50 + [1] * 50
    perfect = score([0.01] * 50 + [0.99] * 50, labels)
    assert (perfect.accuracy, perfect.ap, perfect.auc, perfect.tpr_at_1) == (100,) * 4
    assert (perfect.fpr_at_99, perfect.unsure) == (0, 0)
    blind = score([0.2] * 100, labels)
    assert (blind.accuracy, blind.accuracy_real, blind.accuracy_generated) == (50, 100, 0)
    assert (blind.auc, blind.unsure) == (50, 100)
    assert math.isnan(blind.accuracy_sure)


def test_balanced_accuracy_does_not_follow_the_larger_class() -> None:
    found = score([0.1] * 90 + [0.1] * 10, [0] * 90 + [1] * 10)
    assert (found.accuracy, found.balanced) == (90, 50)


def test_one_class_alone_gives_nan_and_null_in_json() -> None:
    found = score([0.9, 0.1], [1, 1])
    assert found.accuracy_generated == 50
    assert math.isnan(found.auc)
    assert found.to_dict()["auc"] is None


def test_curves_agree_with_sklearn_ties_included() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    for _ in range(20):
        p = generator.integers(0, 6, 40) / 5
        y = generator.integers(0, 2, 40)
        y[:2] = (0, 1)
        assert roc_auc(p, y) == pytest.approx(metrics.roc_auc_score(y, p))
        assert average_precision(p, y) == pytest.approx(metrics.average_precision_score(y, p))
        every = [
            (np.mean(p[y == 1] > t) + np.mean(p[y == 0] <= t)) / 2 for t in np.arange(-1, 6) / 5
        ]
        assert best_balanced(p, y) == pytest.approx(100 * max(every))


def test_a_calibrated_detector_has_no_calibration_error() -> None:
    p = np.repeat([0.1, 0.5, 0.9], 100)
    y = np.concatenate([np.arange(100) < k for k in (10, 50, 90)]).astype(int)
    assert score(p.tolist(), y.tolist()).ece == pytest.approx(0, abs=1e-9)
    assert score((p * 0 + 0.9).tolist(), y.tolist()).ece == pytest.approx(40)


def test_intervals_hold_the_share_and_shrink() -> None:
    low, high = wilson(70, 100)
    assert low < 70 < high
    assert wilson(7000, 10000)[0] > low


@pytest.mark.parametrize("bad", [([], []), ([0.5], [2]), ([math.nan], [1]), ([0.5, 0.5], [1])])
def test_what_cannot_be_scored_is_refused(bad) -> None:
    with pytest.raises(ValueError, match=r"labels|probabilities"):
        score(*bad)
