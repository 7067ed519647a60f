"""The recipes of the paper's tables: rows, fast ones computed, a training at a tiny scale."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dukd import recipes, reproduce
from dukd.methods import METHODS
from papers_shared.images import write_image
from papers_shared.restoration.benchmarks import Pair
from papers_shared.restoration.family import RestorationFamily
from papers_shared.tables.recipe import Context, Needs
from papers_shared.tables.schema import load

REPORTED = load(Path(__file__).parents[1] / "reported.yaml")


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("table1", "edsr_student_x4"),
        ("table1", "rcan_student_x4"),
        ("table1", "edsr_m_x3"),
        ("defects", "back_transform"),
        ("defects", "fakd_gradient"),
    ],
)
def test_a_computed_row_is_within_its_guards(table: str, row: str, tmp_path: Path) -> None:
    computed = reproduce.TABLES[table].recipes[row].run(Context("cpu", 0, tmp_path))
    cells = REPORTED.tables[table].rows[row].cells
    assert computed.keys() == cells.keys()
    for column, measured in computed.items():
        assert cells[column].guards
        for guard in cells[column].guards:
            assert measured.value == pytest.approx(guard.value, abs=guard.tolerance + 1e-9)


def test_rows_differ_in_their_method_alone() -> None:
    for name, table in (
        ("ablation_small", reproduce.ROWS),
        ("ablation_operations", reproduce.OPERATION_ROWS),
    ):
        for row in table:
            settings = dict(reproduce.TABLES[name].recipes[row].settings)
            assert settings.pop("method") in METHODS
            for changed in ("teacher", "operations"):
                settings.pop(changed, None)
            assert settings == {**recipes.SMALL, "steps": reproduce.STEPS}


def test_a_row_trains_once_a_seed(
    tmp_path: Path, photos: str, monkeypatch: pytest.MonkeyPatch, make_edsr
) -> None:
    pairs = [Pair("a", torch.rand(3, 9, 12), torch.rand(3, 18, 24))]
    monkeypatch.setattr(recipes, "SuperResolutionSet", lambda name, scale: pairs)
    monkeypatch.setattr(recipes, "load_teacher", lambda name: make_edsr().eval())
    monkeypatch.setattr("dukd.train.load_teacher", lambda name, **rest: make_edsr().eval())
    work = tmp_path / "work"
    work.mkdir()
    changes = {"patch": 8, "batch_size": 2, "steps": 2, "seeds": 2, "pool": 4, "data": [photos]}
    changes["mixed_precision"] = "no"  # accelerate has one precision a process
    row = reproduce.TABLES["ablation_small"].recipes["dukd"]
    small = row.run(Context("cpu", 5, work, {**row.settings, **changes}))
    assert small.keys() == REPORTED.tables["ablation_small"].columns.keys()
    assert all(measured.n == 2 and measured.std is not None for measured in small.values())
    assert sorted(path.name for path in work.glob("seed*")) == ["seed5", "seed6"]
    start = reproduce.TABLES["ablation_small"].recipes["start"]
    assert small.keys() - start.run(Context("cpu", 0, work, start.settings)).keys() == {"step_ms"}


def test_transforms_of_a_network_that_commutes_change_nothing(monkeypatch, tmp_path) -> None:
    pairs = [Pair("a", torch.rand(3, 9, 12), torch.rand(3, 18, 24))]
    monkeypatch.setattr(recipes, "SuperResolutionSet", lambda name, scale: pairs)
    nearest = torch.nn.Upsample(scale_factor=2)
    monkeypatch.setattr(recipes, "load_teacher", lambda name: nearest)
    row = recipes.Judge(Context("cpu", 0, tmp_path), scale=2)(nearest)
    assert row["transforms"] == pytest.approx(0, abs=1e-4)
    assert row["fidelity"] == float("inf")


def test_weights_that_are_not_there_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = tmp_path / "none"
    monkeypatch.setattr(RestorationFamily, "path_of", lambda self, weights: nowhere)
    with pytest.raises(Needs, match="dukd train --config mini_x2"):
        reproduce.TABLES["shipped"].recipes["mini_x2"].run(Context("cpu", 0, tmp_path))


def test_bicubic_is_scored_on_the_recipes_sets(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "HR"
    folder.mkdir()
    write_image(torch.rand(3, 20, 20), folder / "a.png")
    called = []

    def measured(restore, task, name, **rest):
        called.append((name, restore(torch.rand(1, 3, 4, 5)).shape))
        return recipes.Scores({"a": {"psnr": 1.0}}, {"psnr": "p"})

    monkeypatch.setattr(recipes, "measure", measured)
    row = recipes.bicubic(Context("cpu", 0, tmp_path, assets={"set5": None}), scale=3)
    assert called == [("set5", (1, 3, 12, 15))]
    assert row["set5_psnr"].value == 1
