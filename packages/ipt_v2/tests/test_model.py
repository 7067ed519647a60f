"""The restoration network: sizes, any picture, regimes, ablations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ipt_v2.attention import FCSA, GGSA, MDTA
from ipt_v2.feedforward import merge
from ipt_v2.model import VARIANTS, Config, build
from papers_shared.complexity import count_macs, count_parameters

TINY = replace(VARIANTS["cpu_toy"], window_size=2, cell_sizes=(4, 2, 2, 1))  # alignment 16

# Counted on the authors' modules in this wiring: trained, merged, MACs of 256x256 (merged).
COUNTS = {
    "b": (22_630_980, 18_850_116, 136.62),
    "s": (10_216_116, 8_502_452, 67.48),
    "t": (2_678_820, 2_225_444, 21.94),
    "toy": (2_363_622, 2_079_270, 19.48),
    "cpu_toy": (283_604, 248_340, 2.67),
}


def on_meta(config: Config):
    with torch.device("meta"):
        return build(config)


def giga_macs(model, side: int = 256) -> float:
    shape = (1, model.config.in_channels, side, side)
    return round(count_macs(model, shape, rule="flop_counter").total / 2e9, 2)


@pytest.mark.parametrize("name", COUNTS)
def test_sizes_are_those_of_the_table(name):
    model = on_meta(VARIANTS[name])
    merged = merge(model)
    assert (count_parameters(model), count_parameters(merged), giga_macs(merged)) == COUNTS[name]


def test_size_b_at_128_pixels_and_unmerged_costs_what_the_sheet_says():
    model = on_meta(VARIANTS["b"])
    assert giga_macs(merge(model), 128) == 29.48
    assert giga_macs(model) == 159.04


@pytest.mark.parametrize(
    ("changes", "parameters", "macs"),
    [
        ({"cell_sizes": (8, 4, 2, 1)}, None, 209.1),
        ({"cell_sizes": (32, 16, 8, 4)}, None, 118.5),
        ({"window_size": 16}, 18_906_948, 136.05),
    ],
)
def test_other_cells_and_windows_of_b(changes, parameters, macs):
    merged = merge(on_meta(replace(VARIANTS["b"], **changes)))
    assert giga_macs(merged) == pytest.approx(macs, abs=0.05)
    assert parameters in (None, count_parameters(merged))


@pytest.mark.parametrize(
    ("attention", "parameters", "macs"),
    [(("fcsa", "fcsa"), 2_385_156, 15.97), (("ggsa", "ggsa"), 2_342_088, 22.99)],
)
def test_ablations_of_the_toy_cost_what_the_sheet_says(attention, parameters, macs):
    model = on_meta(replace(VARIANTS["toy"], attention=attention))
    assert (count_parameters(model), giga_macs(merge(model))) == (parameters, macs)


@pytest.mark.parametrize(("channels", "size"), [(3, (17, 31)), (1, (1, 5)), (1, (16, 32))])
def test_pictures_of_any_size_keep_it_and_a_batch_is_its_pictures(channels, size):
    model = build(replace(TINY, in_channels=channels)).eval()
    assert model.alignment == 16
    x = torch.rand(2, channels, *size)
    with torch.no_grad():
        y = model(x)
        alone = model(x[1:])
    assert y.shape == x.shape
    torch.testing.assert_close(y[1:], alone, atol=1e-5, rtol=0)


def test_the_variants_take_17x31_pixels():
    model = build(VARIANTS["cpu_toy"]).eval()
    assert model.alignment == 64
    x = torch.rand(1, 3, 17, 31)
    with torch.no_grad():
        y, merged = model(x), merge(model)(x)
    assert y.shape == x.shape
    torch.testing.assert_close(merged, y, atol=1e-5, rtol=0)


def test_the_network_adds_to_its_input():
    model = build(TINY)
    torch.nn.init.zeros_(model.output.weight)
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(model(x), x)


def test_the_grid_regime_equals_cells_at_the_training_size_and_keeps_the_tokens_beyond():
    model = build(TINY).eval()
    x = torch.rand(1, 3, 16, 32)
    with torch.no_grad():
        cells = model(x)
        model.set_regime("grid", tokens=4)
        grid = model(x)
    sizes = {tuple(m._cell(16, 32)) for m in model.modules() if isinstance(m, GGSA)}
    assert sizes == {(4, 8)}
    assert (cells - grid).abs().max() > 1e-6
    square = torch.rand(1, 3, 16, 16)
    config = replace(TINY, cell_sizes=(4, 2, 1, 1))  # what 4 tokens a side are at 16 pixels
    with torch.no_grad():
        grid = model(square)
        trained = build(config).eval()
        trained.load_state_dict(model.state_dict())
        torch.testing.assert_close(trained(square), grid, atol=1e-5, rtol=0)
    model.set_regime("cells")
    with torch.no_grad():
        assert torch.equal(model(x), cells)
    with pytest.raises(ValueError, match="expected 'cells' or 'grid'"):
        model.set_regime("tiles")


def test_the_grid_regime_costs_in_proportion_to_the_pixels():
    model = on_meta(VARIANTS["cpu_toy"])
    cells = [giga_macs(model, side) for side in (256, 512)]
    model.set_regime("grid")
    grid = [giga_macs(model, side) for side in (256, 512)]
    assert grid[0] == cells[0]
    assert grid[1] == pytest.approx(4 * grid[0], rel=0.01)
    assert cells[1] > 1.3 * grid[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"order": "gf"},
        {"norm": "bias_free"},
        {"attention": ("mdta", "ggsa")},
        {"attention": ("fcsa_unshifted", "ggsa")},
        {"rep": 0},
        {"rep": 0, "plain_identity": False},
        {"rep": 3},
        {"bias": True},
        {"posemb_type": "rope2d", "attn_type": "v2"},
    ],
)
def test_every_option_makes_a_network_that_trains_and_merges(changes):
    config = (
        replace(TINY, dim=16, **changes) if "posemb_type" in changes else replace(TINY, **changes)
    )
    model = build(config)
    x = torch.rand(1, 3, 32, 32)  # two windows a side at the deepest level, so both branches train
    model(x).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        torch.testing.assert_close(merge(model)(x), model(x), atol=1e-5, rtol=0)
    assert Config.of(config.to_dict()) == config
    build(merge(model).config).load_state_dict(merge(model).state_dict())


def test_the_halves_are_the_attentions_that_were_asked_for():
    block = build(replace(TINY, attention=("mdta", "fcsa"))).latent[0]
    assert isinstance(block.focal_attn, MDTA)
    assert isinstance(block.grid_attn, FCSA)


def test_wrong_configurations_and_pictures_are_refused_by_name():
    for changes, message in (
        ({"rep": 2}, "rep=2"),
        ({"norm": "batch"}, "norm='batch'"),
        ({"attention": ("fcsa", "swin")}, "expected two of fcsa"),
        ({"num_heads": (1, 2)}, "expected 4 numbers"),
        ({"window_size": 7}, "even number"),
    ):
        with pytest.raises(ValueError, match=message):
            build({**TINY.to_dict(), **changes})
    with pytest.raises(ValueError, match="unknown network option 'width'"):
        Config.of({"width": 3})
    with pytest.raises(ValueError, match=r"expected \(batch, 3, height, width\)"):
        build(TINY)(torch.rand(1, 1, 16, 16))
