"""The recipes of the paper's tables: rows, fast ones computed, distillations at a tiny scale."""

from __future__ import annotations

import importlib
import os
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from papers_shared._basicsr import basicsr_module
from papers_shared.cli import load_config
from papers_shared.data.photos import PairFolder
from papers_shared.diffusion import families
from papers_shared.tables.recipe import Context, Needs
from papers_shared.tables.schema import load
from tad_sr import family, reproduce
from tad_sr.cli import main
from tad_sr.config import TrainConfig
from tad_sr.losses import LossConfig
from tad_sr.train import loss_config

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
tiny = importlib.import_module("tiny_tad_sr")

REPORTED = load(Path(__file__).parents[1] / "reported.yaml")
needs_mirror = pytest.mark.skipif(
    not os.environ.get("PAPERS_MIRROR"), reason="PAPERS_MIRROR is not set"
)


def test_gradients_that_have_to_vanish_do(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["reproduce", "--table", "deterministic", "--output", str(tmp_path / "results")]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "5 exact" in out
    assert out.count("claim holds") == 2


def test_counts_of_the_discriminator_are_the_authors(tmp_path: Path) -> None:
    context = Context("cpu", 0, tmp_path)
    recipe = reproduce.TABLES["complexity"].recipes["discriminator"]
    for column, cell in REPORTED.tables["complexity"].rows["discriminator"].cells.items():
        assert recipe.run(context)[column].value == pytest.approx(cell.reported[0].value, rel=1e-9)


def test_students_of_the_ablation_differ_in_their_losses_alone() -> None:
    recipes = reproduce.TABLES["ablation_small"].recipes
    losses = set(LossConfig.__dataclass_fields__)
    seen = []
    for recipe in (recipes[name] for name in reproduce.STUDENTS):
        settings = {key: value for key, value in recipe.settings.items() if key != "seeds"}
        seen.append(loss_config(load_config(TrainConfig, None, settings)))
        assert {k: v for k, v in recipe.settings.items() if k not in losses} == reproduce.SMALL
    assert len(set(seen)) == len(seen)
    assert seen[-1] == LossConfig()


@needs_mirror
def test_a_row_of_the_ablation_distils_once_a_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        basicsr_module("data.degradations")
    except ImportError as reason:
        pytest.skip(str(reason))
    tiny.prepare(tmp_path, num_train_timesteps=4)
    tiny.write_pairs(tmp_path / "pairs")
    teacher = str(tmp_path / "teacher.safetensors")
    monkeypatch.setattr(reproduce, "TEACHER", teacher)
    monkeypatch.setattr(reproduce, "val_sr", lambda context: PairFolder(tmp_path / "pairs"))
    kept = ("crop", "degradation", "steps", "batch_size", "lr", "c_dim")
    settings = {name: tiny.OPTIONS[name] for name in kept}
    given = {"teacher": teacher, "photos": [str(tmp_path / "photos")], "target_cache": 4}
    work = tmp_path / "work"
    work.mkdir()
    context = partial(Context, "cpu", 5, work)
    row = reproduce.student(context({**settings, **given, "seeds": 2}))
    assert row.keys() == REPORTED.tables["ablation_small"].columns.keys()
    assert all(measured.n == 2 and measured.std for measured in row.values())
    assert sorted(path.name for path in work.glob("seed*")) == ["seed5", "seed6"]


@needs_mirror
def test_a_shipped_network_is_scored_on_all_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = tiny.write_network(tmp_path / "student.safetensors")
    tiny.write_pairs(tmp_path / "pairs", count=3)
    monkeypatch.setattr(families.Family, "shipped", lambda self, name: student)
    monkeypatch.setattr(reproduce, "val_sr", lambda context: PairFolder(tmp_path / "pairs"))
    assert family.load_pipeline().default_steps == 1
    row = reproduce.small(Context("cpu", 0, tmp_path), weights="small")
    assert row.keys() <= REPORTED.tables["table2_val_sr"].columns.keys()
    assert all(measured.n == 3 for measured in row.values())


def test_released_weights_fill_a_row_of_table_2_where_they_and_the_photos_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write_pairs(tmp_path / "pairs", count=2)
    recipe = reproduce.TABLES["table2"].recipes["sinsr_1"]
    files = {
        "sinsr_realsr_v1": tiny.write_network(tmp_path / "student.safetensors"),
        "vq_f4_autoencoder": "",  # the tiny network's file names its own
        "imagenet_test": tmp_path / "pairs",
    }
    assert set(recipe.assets) == {*files, "lpips_alexnet_features"}
    assets = {name: SimpleNamespace(path=path) for name, path in files.items()}
    context = Context("cpu", 0, tmp_path, assets=assets)  # type: ignore[arg-type]
    with pytest.raises(Needs, match="holds 2 pictures, imagenet_test has 3000"):
        recipe.run(context)
    monkeypatch.setitem(reproduce.PHOTOS, "imagenet_test", 2)
    monkeypatch.setattr(reproduce, "WITH_REFERENCE", ("psnr", "ssim"))  # LPIPS needs its weights
    monkeypatch.setattr(reproduce, "find_spec", lambda name: None)
    row = recipe.run(context)
    assert row.keys() == {"psnr", "ssim"}
    assert all(measured.n == 2 for measured in row.values())


@pytest.mark.parametrize("table", ["table2", "table3", "table2_val_sr"])
def test_released_rows_fill_columns_of_their_tables(table: str) -> None:
    columns = REPORTED.tables[table].columns
    for row in reproduce.TABLES[table].recipes.keys() & reproduce.RELEASED.keys():
        recipe = reproduce.TABLES[table].recipes[row]
        sets = [name for name in recipe.assets if name in reproduce.PHOTOS]
        for name in recipe.run.keywords["metrics"]:  # type: ignore[attr-defined]
            for photos in sets:
                prefix = f"{photos.removesuffix('_test')}_" if table == "table3" else ""
                assert f"{prefix}{name}" in columns
