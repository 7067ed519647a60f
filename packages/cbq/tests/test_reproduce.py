"""The recipes: every row is computed or says what it needs; the small ones at a tiny scale."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cbq import recipes, reproduce
from cbq.settings import preset
from papers_shared.language_models import tiny_llama
from papers_shared.tables.recipe import Context
from papers_shared.tables.schema import load

REPORTED = load(Path(__file__).parents[1] / "reported.yaml")


@pytest.mark.parametrize("name", ["small_full", "small_ablation", "small_scratch"])
def test_every_method_of_a_table_has_settings(name: str) -> None:
    for recipe in reproduce.TABLES[name].recipes.values():
        if "method" in recipe.settings:
            preset(recipe.settings["method"], **recipe.settings["changes"])


def test_counts_are_those_of_the_sheet(tmp_path: Path) -> None:
    for name, recipe in reproduce.TABLES["counts"].recipes.items():
        row = recipe.run(Context("cpu", 0, tmp_path))
        cells = REPORTED.tables["counts"].rows[name].cells
        assert row.keys() == cells.keys()
        for column, measured in row.items():
            expected = cells[column].expected
            assert expected is not None
            assert abs(measured.value - expected.value) <= expected.tolerance
    llama = reproduce.TABLES["counts"].recipes["llama1_7b"].run(Context("cpu", 0, tmp_path))
    assert llama["params"].value == 6_738_415_616
    assert llama["lora"].value == 12_492_800


def test_methods_of_a_table_share_everything_but_the_method() -> None:
    for name in ("small_full", "small_ablation", "small_scratch"):
        settings = [dict(r.settings) for r in reproduce.TABLES[name].recipes.values()]
        for row in settings:
            row.pop("method", None)
            row.pop("changes", None)
            row.pop("seeds")
        assert all(row == settings[0] for row in settings)


def test_a_small_row_is_computed_once_a_seed(tmp_path: Path, monkeypatch) -> None:
    draw = torch.Generator().manual_seed(0)
    text = torch.randint(3, 97, (400,), generator=draw)
    monkeypatch.setattr(recipes, "load_language_model", lambda name: (tiny_llama(), None))
    monkeypatch.setattr(recipes, "_tokens", lambda model, split: text)
    recipes._shared_grids.cache_clear()
    shape = {"model": "tiny", "segments": 4, "length": 16, "windows": 3, "blocks": 2, "seeds": 2}
    changes = {"bits": 2, "act_bits": 16, "group": -1}
    rows = {}
    for method, more in (("rtn", {}), ("gptq", {}), ("best", {"steps": 2})):
        settings = {**shape, "method": method, "changes": changes | more}
        rows[method] = recipes.small_run(Context("cpu", 5, tmp_path, settings))
    rows["float"] = recipes.small_run(Context("cpu", 5, tmp_path, shape))
    recipes._shared_grids.cache_clear()
    assert rows["best"].keys() == {"ppl", "cpu_minutes", "windows_kept"}
    assert rows["rtn"]["ppl"].n == 2
    assert rows["rtn"]["ppl"].std
    assert rows["float"]["ppl"].std == 0
    assert len({row["ppl"].value for row in rows.values()}) == 4


def test_only_the_first_blocks_are_quantized() -> None:
    model = tiny_llama(layers=3)
    blocks = list(model.model.layers)
    with recipes.first_blocks(model, 2):
        assert len(model.model.layers) == model.config.num_hidden_layers == 2
    assert list(model.model.layers) == blocks
    assert model.config.num_hidden_layers == 3


def test_the_model_trained_from_scratch_learns_its_text() -> None:
    text = torch.tensor(list(b"a rose is a rose is a rose. " * 20))
    size = {"blocks": 1, "hidden": 32, "intermediate": 48, "length": 32}
    rate = {"batch": 4, "lr": 1e-2, "warmup": 2}

    def loss(steps: int) -> float:
        model = recipes.train_from_scratch(lambda: text, **size, **rate, steps=steps)
        with torch.no_grad():
            return model(text[None, :64], labels=text[None, :64]).loss.item()

    assert loss(40) < loss(1) / 2
