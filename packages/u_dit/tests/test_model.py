"""What the paper says of the network: sizes, costs, token downsampling, fusing."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from papers_shared.complexity import count_macs, count_parameters
from papers_shared.networks.grid_attention import join_cells, split_cells
from u_dit.attention import DownsampledAttention
from u_dit.counting import elementwise, on_meta, paper_macs
from u_dit.dit import DIT_VARIANTS
from u_dit.model import VARIANTS, Config, build, fuse
from u_dit.official import load_official

from .conftest import TINY


@pytest.mark.parametrize(
    ("variant", "file", "fused"),
    [("U-DiT-S", 58_896_568, 52_045_240), ("U-DiT-B", 231_251_304, 204_425_064),
     ("U-DiT-L", 916_335_304, 810_188_488)],
)  # fmt: skip
def test_parameters_are_those_of_the_files_and_of_table_8(variant, file, fused) -> None:
    model = on_meta(VARIANTS[variant])
    assert count_parameters(model) == file
    assert count_parameters(fuse(model)) == fused
    assert len(model.state_dict()) == 1043


@pytest.mark.parametrize(
    ("variant", "millions"),
    [("DiT-UNet", 5.245), ("U-DiT-T", 5.282), ("U-DiT-T-all", 7.995), ("DiT-UNet-Slim", 3.035),
     ("U-DiT-S-vanilla", 51.466)],
)  # fmt: skip
def test_parameters_of_the_ablation(variant, millions) -> None:
    assert count_parameters(on_meta(VARIANTS[variant])) == pytest.approx(millions * 1e6, abs=500)


@pytest.mark.parametrize(
    ("variant", "giga"),
    [("DiT-UNet", 1.3965), ("U-DiT-T-pixelshuffle", 0.8944), ("U-DiT-T", 0.9054),
     ("DiT-UNet-kv", 0.905), ("U-DiT-T-all", 0.9501)],
)  # fmt: skip
def test_costs_of_the_toy_experiment(variant, giga) -> None:
    assert paper_macs(VARIANTS[variant], 32) / 1e9 == pytest.approx(giga, abs=6e-4)


def test_cost_of_the_transformer_it_is_compared_with() -> None:
    assert paper_macs(DIT_VARIANTS["DiT-S/4"], 32) / 1e9 == pytest.approx(1.4141, abs=5e-5)


def test_element_wise_products_make_the_difference_of_the_papers_count() -> None:
    assert elementwise(VARIANTS["U-DiT-S"], 32) == 6_043_540_124 - 6_020_797_440
    assert elementwise(VARIANTS["U-DiT-B"], 64) == 106_710_374_044 - 106_294_087_680


def test_token_downsampling_quarters_attention_at_any_size() -> None:
    def cost(down_factor: int, side: int) -> int:
        with torch.device("meta"):
            model = DownsampledAttention(16, 2, down_factor=down_factor, downsampler="none")
        counted = count_macs(model, (1, 16, side, side), rule="flop_counter").total // 2
        return counted - side**2 * 4 * 16**2

    for side in (4, 16, 24):
        assert 4 * cost(2, side) == cost(1, side) == 2 * side**4 * 16


@pytest.mark.parametrize(("a", "b"), [(2, 2), (1, 1), (2, 3)])
def test_splitting_a_map_loses_nothing(a: int, b: int) -> None:
    x = torch.randn(2, 5, 6, 12)
    groups = split_cells(x, a, b)
    assert torch.equal(
        groups[0, b * (a - 1)].T.reshape(5, 6 // a, 12 // b), x[0, :, a - 1 :: a, ::b]
    )
    assert torch.equal(join_cells(groups, a, b, rows=6 // a), x)


def test_a_pixel_sees_pixels_of_its_own_map_only() -> None:
    model = DownsampledAttention(8, 2, down_factor=2, downsampler="none")
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    model(x)[0, :, 3, 4].square().sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(0).nonzero()
    assert len(seen) == 16
    assert (seen % 2).unique(dim=0).tolist() == [[1, 0]]


def test_with_fewer_keys_every_pixel_asks_a_quarter() -> None:
    model = DownsampledAttention(8, 2, down_factor=2, downsampler="none", kv=True)
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    model(x)[0, :, 3, 4].square().sum().backward()
    assert x.grad is not None
    seen = [tuple(p) for p in x.grad[0].abs().sum(0).nonzero().tolist()]
    assert sorted(seen) == sorted(
        {(i, j) for i in range(0, 8, 2) for j in range(0, 8, 2)} | {(3, 4)}
    )


def noisy(config: dict):
    model = build(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_fusing_keeps_the_function_and_the_network() -> None:
    model = noisy(TINY)
    before = copy.deepcopy(model.state_dict())
    x, t, y = torch.randn(2, 3, 8, 16), torch.tensor([3, 900]), torch.tensor([0, 3])
    with torch.no_grad():
        fused = fuse(model)
        output = model(x, t, y)
        assert (fused(x, t, y) - output).abs().max() < 1e-5 * output.abs().max()
        torch.testing.assert_close(fuse(fused)(x, t, y), fused(x, t, y))
        assert torch.equal(model.train().eval()(x, t, y), output)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    again = load_official(fused.state_dict(), fused.options)
    torch.testing.assert_close(again(x, t, y), fused(x, t, y))


def test_a_new_network_gives_zero_and_blocks_change_nothing() -> None:
    model = build(TINY)
    x, c = torch.randn(1, 8, 8, 8), torch.randn(1, 8)
    assert torch.equal(model.encoder_level_1[0](x, c), x)
    assert model(torch.randn(1, 3, 8, 8), torch.tensor([5]), torch.tensor([1])).abs().max() == 0


def test_files_of_the_authors_training_give_the_averaged_weights() -> None:
    model, other = noisy(TINY), noisy(TINY)
    content = {"model": other.state_dict(), "ema": model.state_dict(), "opt": {}, "args": None}
    loaded = load_official(content, TINY)
    assert all(torch.equal(v, model.state_dict()[n]) for n, v in loaded.state_dict().items())
    prefixed = {f"module.{n}": v for n, v in other.state_dict().items()}
    assert torch.equal(load_official(prefixed, TINY).output.weight, other.output.weight)


def test_what_does_not_fit_is_refused() -> None:
    state = build(TINY).state_dict()
    with pytest.raises(ValueError, match="NaN"):
        load_official({**state, "output.bias": state["output.bias"] * torch.nan}, TINY)
    with pytest.raises(ValueError, match=r"1 missing \(output\.bias"):
        load_official({n: v for n, v in state.items() if n != "output.bias"}, TINY)
    with pytest.raises(ValueError, match="research file"):
        load_official({"latent.0.global_attn.to_qkv.bias": torch.zeros(3)}, TINY)
    with pytest.raises(ValueError, match="unknown network option 'width'"):
        build({"width": 3})
    with pytest.raises(ValueError, match="multiples of 8"):
        build(TINY)(torch.zeros(1, 3, 12, 8), torch.tensor([0]), torch.tensor([0]))
    for change in ({"downsampler": "pool2"}, {"ffn_type": "moe"}, {"kv": True}, {"num_heads": 3}):
        with pytest.raises(ValueError, match=r"expected|posemb_type|num_heads"):
            build({**TINY, **change})


def test_configurations_go_through_plain_mappings() -> None:
    config = Config.of(TINY)
    assert Config.of(config.to_dict()) == config
    assert replace(config, down_factor=(1, 2, 2, 2, 4)).alignment == 8
    assert replace(config, down_factor=1).alignment == 4
