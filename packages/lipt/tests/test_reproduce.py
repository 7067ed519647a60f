"""The recipes of the paper's tables: rows, fast ones computed, trainings at a tiny scale."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from lipt import recipes, reproduce
from lipt.model import Config
from papers_shared import assets
from papers_shared.images import write_image
from papers_shared.restoration.benchmarks import Pair
from papers_shared.restoration.family import RestorationFamily
from papers_shared.tables.recipe import Context, Needs
from papers_shared.tables.schema import load

REPORTED = load(Path(__file__).parents[1] / "reported.yaml")
needs_mirror = pytest.mark.skipif(
    not os.environ.get("PAPERS_MIRROR"), reason="PAPERS_MIRROR is not set"
)


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("complexity", "tiny_x3"),
        ("merge", "tiny_x4"),
        ("table1_x2", "lipt_small"),
    ],
)
def test_a_computed_row_is_within_its_guards(table: str, row: str, tmp_path: Path) -> None:
    computed = reproduce.TABLES[table].recipes[row].run(Context("cpu", 0, tmp_path))
    cells = REPORTED.tables[table].rows[row].cells
    for column, measured in computed.items():
        assert cells[column].guards
        for guard in cells[column].guards:
            assert measured.value == pytest.approx(guard.value, abs=guard.tolerance + 1e-9)


def test_the_papers_flops_are_085_of_the_convolutions_at_every_size() -> None:
    for size in ("tiny", "small"):
        for scale in (2, 3, 4):
            flops = REPORTED.tables["complexity"].rows[f"{size}_x{scale}"].cells["flops"]
            (printed,) = flops.reported
            table1 = REPORTED.tables[f"table1_x{scale}"].rows[f"lipt_{size}"].cells["flops"]
            assert printed.value == table1.reported[0].value
            assert printed.tolerance == pytest.approx(0.01 * printed.value, abs=1e-3)


def test_the_lively_network_would_show_a_wrong_merge() -> None:
    network = recipes.lively(Config(m_elan=2, c_elan=8), seed=0)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all((m.running_mean != 0).any() and (m.weight != 1).all() for m in norms)


@needs_mirror
def test_bicubic_on_set5_is_what_is_expected(tmp_path: Path) -> None:
    recipe = reproduce.TABLES["table1_x4"].recipes["bicubic"]
    found = {"set5": assets.fetch("set5")}
    row = recipe.run(Context("cpu", 0, tmp_path, assets=found))
    assert row.keys() == {"set5_psnr", "set5_ssim"}
    for column, measured in row.items():
        cell = REPORTED.tables["table1_x4"].rows["bicubic"].cells[column]
        assert cell.expected is not None
        assert abs(measured.value - cell.expected.value) <= cell.expected.tolerance
        assert measured.n == 5


def test_a_shipped_network_that_is_not_there_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = tmp_path / "none"
    monkeypatch.setattr(RestorationFamily, "path_of", lambda self, weights: nowhere)
    for table, row in (("table1_x4", "mini"), ("denoising", "mini_25"), ("jpeg", "mini_10")):
        with pytest.raises(Needs, match="lipt train --config mini_"):
            reproduce.TABLES[table].recipes[row].run(Context("cpu", 0, tmp_path))


def test_rows_of_an_ablation_differ_in_one_thing() -> None:
    for networks, first in ((reproduce.ATTENTION, "sparse"), (reproduce.BRANCHES, "hrm")):
        base = asdict(networks[first])
        changed = [
            {key for key, value in asdict(config).items() if value != base[key]}
            for name, config in networks.items()
            if name != first
        ]
        assert all(len(keys) == 1 for keys in changed)
    for table in ("ablation_attention", "ablation_branches"):
        settings = [dict(r.settings) for r in reproduce.TABLES[table].recipes.values()]
        for row in settings:
            row.pop("network")
        assert all(row == settings[0] for row in settings)


def test_a_row_of_an_ablation_trains_once_a_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(2):
        write_image(torch.rand(3, 36, 40), photos / f"{i}.png")
    pairs = [Pair("a", torch.rand(3, 9, 12), torch.rand(3, 18, 24))]
    monkeypatch.setattr(recipes, "SuperResolutionSet", lambda name, scale: pairs)
    work = tmp_path / "work"
    work.mkdir()
    small = {"patch": 16, "batch_size": 2, "steps": 2, "seeds": 2, "photos": [str(photos)]}
    network = replace(reproduce.BRANCHES["plain"], c_elan=8).to_dict()
    settings = json.loads(json.dumps({**recipes.SMALL, **small, "network": network}))
    row = recipes.small_training(Context("cpu", 5, work, settings))
    assert row.keys() == REPORTED.tables["ablation_branches"].columns.keys()
    assert all(measured.n == 2 and measured.std for measured in row.values())
    assert sorted(path.name for path in work.glob("seed*")) == ["seed5", "seed6"]
