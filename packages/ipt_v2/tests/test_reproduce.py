"""The recipes of the tables: rows, fast ones computed, trainings at a tiny scale."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ipt_v2 import claims, recipes, reproduce
from ipt_v2.cli import main
from ipt_v2.config import TrainConfig
from ipt_v2.family import FAMILY
from ipt_v2.model import VARIANTS, Config, build
from papers_shared.cli import load_config
from papers_shared.restoration.family import Restorer
from papers_shared.restoration.task import Task
from papers_shared.tables.recipe import Context, Needs
from papers_shared.tables.schema import load

REPORTED = load(Path(__file__).parents[1] / "reported.yaml")
TINY = replace(VARIANTS["cpu_toy"], window_size=2, cell_sizes=(4, 2, 2, 1))  # alignment 16
needs_mirror = pytest.mark.skipif(
    not os.environ.get("PAPERS_MIRROR"), reason="PAPERS_MIRROR is not set"
)


def test_what_holds_for_any_weights_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["reproduce", "--table", "receptive_field", "cost", "--output", str(tmp_path / "out")]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "4 exact" in out
    assert out.count("claim holds") == 3


def test_the_reach_of_an_attention_is_found_by_its_gradient() -> None:
    shift = torch.nn.Conv2d(claims.DIM, claims.DIM, 3, padding=1)
    seen = claims.reach(shift, side=16, pixel=(0, 8), seed=0)
    assert seen.sum() == 6
    assert seen[:2, 7:10].all()


def test_recipes_fill_columns_that_their_tables_have(tmp_path: Path) -> None:
    context = Context("cpu", 0, tmp_path)
    for table, row in (("complexity", "cpu_toy"), ("generation_complexity", "g48")):
        made = reproduce.TABLES[table].recipes[row].run(context)
        assert made.keys() == REPORTED.tables[table].columns.keys()
        for column, cell in REPORTED.tables[table].rows[row].cells.items():
            for guard in cell.guards:
                assert made[column].value == pytest.approx(guard.value, abs=guard.tolerance + 1e-9)


def test_networks_of_the_ablation_differ_in_one_thing() -> None:
    defaults = TrainConfig.__dataclass_fields__
    for name, recipe in reproduce.TABLES["ablation_small"].recipes.items():
        network = Config.of(recipe.settings["network"])
        differing = [
            key for key, value in network.to_dict().items() if value != recipes.TOY.to_dict()[key]
        ]
        assert len(differing) == (name != "fg"), name
        rest = {key: value for key, value in recipe.settings.items() if key != "network"}
        assert rest == recipes.SMALL
        assert all(key in defaults or key in recipes.EVALUATION for key in rest)
    settings = {k: v for k, v in recipes.SMALL.items() if k in defaults}
    config = load_config(TrainConfig, None, {**settings, "variant": "toy"})
    assert config.steps == recipes.SMALL["steps"]


def test_steps_across_windows_count_as_seams() -> None:
    error = torch.zeros(3, 16, 16)
    assert recipes.window_steps(error, 4) == 0
    error[:, :, 4:] = 0.1  # a step at one of three borders, in one direction
    assert recipes.window_steps(error, 4) == pytest.approx(255 * 0.1 / 3 / 2)
    error = torch.zeros(3, 16, 16)
    error[:, :, 6:] = 0.1  # a step inside a window, one of 12
    assert recipes.window_steps(error, 4) == pytest.approx(-255 * 0.1 / 12 / 2)


def test_columns_over_seeds_are_means_and_sample_deviations() -> None:
    row = recipes.over_seeds([{"psnr": 1.0}, {"psnr": 3.0}])
    assert row["psnr"].value == 2
    assert row["psnr"].std == pytest.approx(2**0.5)
    assert recipes.over_seeds([{"psnr": 1.0}])["psnr"].std is None


def test_without_the_shipped_network_its_rows_say_how_it_is_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(type(FAMILY), "path_of", lambda self, name: tmp_path / name)
    with pytest.raises(Needs, match="ipt-v2 train --config mini_denoise_25"):
        recipes.shipped_restorer("cells")


def test_regimes_are_compared_with_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restorer = Restorer(build(TINY), config=TINY, task=Task("denoise", level=25), family=FAMILY)
    restorer.save_pretrained(tmp_path / "network")
    file = tmp_path / "network" / "model.safetensors"
    monkeypatch.setattr(type(FAMILY), "path_of", lambda self, name: file)
    monkeypatch.setattr(recipes, "_first", lambda name, count: [("a", torch.rand(3, 48, 80))])
    settings = {**reproduce.REGIME_SETTINGS, "side": 64, "tile": 32}
    context = Context("cpu", 0, tmp_path, settings=settings)
    made = {
        name: recipe.run(context) for name, recipe in reproduce.TABLES["regimes"].recipes.items()
    }
    assert made["cells"].keys() == {"kodak24_psnr", "enlarged_psnr"}
    for name in ("grid", "tiles"):
        assert made[name].keys() == REPORTED.tables["regimes"].columns.keys()
        assert made[name]["kodak24_distance"].value > 0


@needs_mirror
def test_a_row_of_the_ablation_trains_once_a_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    small = {"patch": 16, "batch_size": 2, "steps": 2, "seeds": 2, "kodak24": 1, "cbsd68": 1}
    settings = {**recipes.SMALL, **small, "side": 32, "network": TINY.to_dict()}
    row = recipes.small_training(Context("cpu", 5, tmp_path, settings=settings))
    assert row.keys() == REPORTED.tables["ablation_small"].columns.keys()
    assert all(row[name].n == 2 and row[name].std for name in ("kodak24_psnr", "seam"))
    assert sorted(path.name for path in tmp_path.glob("seed*")) == ["seed5", "seed6"]
