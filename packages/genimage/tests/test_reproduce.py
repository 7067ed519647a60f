"""The tables: arithmetic of the reported numbers, and what the small recipes compute."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from genimage import recipes, small_photos, small_runs
from genimage.figures import draw_tables, reported_matrix
from genimage.index import Index
from genimage.small_runs import Run, code_digest
from genimage.small_set import mean_spectrum, small_set, squares
from papers_shared.tables.recipe import Context


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context("cpu", 0, tmp_path)


def test_the_key_of_a_run_covers_modules_that_exist() -> None:
    assert len(code_digest()) == 16


def test_column_means_of_the_recalled_matrix_are_table_4s_row(context) -> None:
    ours = recipes.column_means(context, table="table2")
    printed = recipes.reported().tables["table4"].rows["resnet_50"].cells
    assert len(ours) == 9
    for name, measured in ours.items():
        assert measured.value == pytest.approx(printed[name].reported[0].value, abs=0.1)
    assert ours["sdv14"].value == pytest.approx(72.35, abs=0.005)


@pytest.mark.parametrize("table", ["table2", "table3", "table4", "table5", "reruns"])
def test_every_printed_mean_is_the_mean_of_its_cells(table, context) -> None:
    for name, row in recipes.reported().tables[table].rows.items():
        mean = recipes.row_mean(context, table=table, row=name)["avg"].value
        assert mean == pytest.approx(row.cells["avg"].reported[0].value, abs=0.1)


def test_squares_do_not_overlap_and_follow_their_seed(make_picture) -> None:
    photos = {"a": make_picture(1, (240, 160))}
    found = squares(photos, 30, side=32, seed=1)
    assert len({name for name, _ in found}) == 30
    assert {square.size for _, square in found} == {(32, 32)}
    assert [n for n, _ in found] == [n for n, _ in squares(photos, 30, side=32, seed=1)]


def test_a_small_set_has_equal_formats_and_is_made_once(tmp_path, make_picture, monkeypatch):
    source = tmp_path / "photos"
    source.mkdir()
    for i in range(2):
        make_picture(i, (481, 321)).save(source / f"{i}.png")
    calls: list[int] = []

    def make(photos, workdir):
        calls.append(len(photos))
        time.sleep(0.1)
        return small_photos.by_resampling(photos, workdir)

    only = {"bicubic": small_photos.Generator("bicubic", "control", make)}
    monkeypatch.setattr(small_photos, "GENERATORS", only)
    monkeypatch.setattr("genimage.small_set.GENERATORS", only)
    settings = {"train_photos": 2, "train_crops": 3, "val_photos": 1, "val_crops": 2, "side": 32}
    folders = {"train": source, "val": source}
    with ThreadPoolExecutor() as pool:  # at the same time, and once more
        roots = list(pool.map(lambda _: small_set(settings, folders), range(2)))
    root = small_set(settings, folders)
    assert roots == [root, root]
    assert calls == [2, 1]
    files = sorted(root.rglob("*.png"))
    assert len(files) == 2 * (2 * 3 + 1 * 2)
    assert {Image.open(f).size for f in files} == {(32, 32)}


def test_a_run_that_two_tables_want_is_trained_once(tmp_path, monkeypatch) -> None:
    trained: list[str] = []

    def train(config):
        trained.append(config.detector)
        config.output.mkdir(parents=True)
        time.sleep(0.1)
        return SimpleNamespace(detector=None)

    monkeypatch.setattr(small_runs, "train", train)
    monkeypatch.setattr(small_runs, "measure", lambda *_: Run({}, {}, {"jpeg30": 50.0}))
    index = Index(tmp_path / "set", (), (), tmp_path / "index.csv")
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda _: small_runs.run(index, "mini_resnet", "x", 0), range(2)))
    assert found == [Run({}, {}, {"jpeg30": 50.0})] * 2
    assert trained == ["mini_resnet"]


def test_a_generator_that_changes_sizes_is_refused(tmp_path, make_picture, monkeypatch) -> None:
    make_picture(1, (481, 321)).save(tmp_path / "1.png")
    wrong = small_photos.Generator("x", "", lambda photos, _: {s: make_picture(0) for s in photos})
    monkeypatch.setitem(small_photos.GENERATORS, "x", wrong)
    with pytest.raises(ValueError, match="changed the size"):
        small_photos.remade("x", tmp_path, 1)


def test_nearest_leaves_peaks_at_the_highest_frequency(make_picture) -> None:
    small = [make_picture(i, (16, 16)) for i in range(20)]
    nearest, bilinear = (
        mean_spectrum([p.resize((32, 32), how) for p in small])
        for how in (Image.Resampling.NEAREST, Image.Resampling.BILINEAR)
    )
    assert nearest[17:21, 0].mean() > bilinear[17:21, 0].mean() + 1


def test_means_over_seeds_and_generators(context, monkeypatch) -> None:
    names = list(small_photos.GENERATORS)

    def fake(context, detector, generators):
        return {
            own: [
                Run(
                    {n: {"accuracy": 90.0 + s if n == own else 60.0} for n in names},
                    {},
                    {"jpeg30": 50.0 + s},
                )
                for s in (0, 2)
            ]
            for own in generators
        }

    monkeypatch.setattr(recipes, "runs", fake)
    row = recipes.small_means(context, detector="mini_resnet")
    assert (row["own"].value, row["own"].n, row["others"].value) == (91, 2, 60)
    assert row["own"].std == pytest.approx(2**0.5)
    assert row["avg"].value == pytest.approx((91 + 5 * 60) / 6)
    degraded = recipes.small_degraded(context, detector="mini_resnet")
    assert (degraded["jpeg30"].value, degraded["clean"].value) == (51, 91)


def test_reported_matrices_name_their_origin_and_nothing_is_drawn_without_results(tmp_path) -> None:
    assert "recalled" in reported_matrix(recipes.reported().tables["table2"]).note
    assert draw_tables(tmp_path, ["table2"]) == []
