"""The network: counts of the sheet, any picture size, every switch, clear refusals."""

from __future__ import annotations

import pytest
import torch

from lipt import VARIANTS, Config, build, merge
from lipt.model import NVSMSelfAttention, pad_to_multiple, set_attention_backend
from papers_shared.complexity import count_parameters

# deploy, train, trainable; the sheet's 3.7. Names with other scales have no published count.
COUNTS = {
    "tiny_x2": (353_156, 910_148, 889_388),
    "tiny_x3": (357_491, 914_483, 893_723),
    "tiny_x4": (363_560, 920_552, 899_792),
    "tiny_released_x2": (265_284, 693_252, 672_492),
    "small_x2": (2_328_420, 5_905_380, 5_836_236),
    "small_x3": (2_801_011, 7_093_363, 7_010_395),
    "small_x4": (2_813_128, 7_105_480, 7_022_512),
    "base_x2": (26_051_076, 65_049_156, 64_706_988),
    "base_x3": (26_070_531, 65_068_611, 64_726_443),
    "base_x4": (26_097_768, 65_095_848, 64_753_680),
}


def deploy_parameters(c: Config) -> int:
    """The sheet's closed form, for any number of colours."""
    n, width, tail = c.n_share, c.c_elan, c.colors * c.scale**2
    block = 6 * (1 + n) * (9 * width**2 + width)
    block += (2 * width**2 + 2 * width) + (width**2 + width) + n * (2 * width**2 + 2 * width)
    ends = 9 * c.colors * width + width + tail * (9 * width + 1)
    return c.blocks * block + ends + (24 if c.colors == 3 else 0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_have_the_parameters_of_the_sheet(variant: str) -> None:
    config = VARIANTS[variant]
    with torch.device("meta"):
        train, deploy = build(config), build(config.to_dict() | {"deploy": True})
    counts = (
        count_parameters(deploy),
        count_parameters(train),
        count_parameters(train, trainable_only=True),
    )
    assert counts[0] == deploy_parameters(config)
    if variant in COUNTS:
        assert counts == COUNTS[variant]


@pytest.mark.parametrize("size", [(17, 31), (8, 8), (3, 40), (1, 1), (25, 9)])
@pytest.mark.parametrize("colors", [1, 3])
@pytest.mark.parametrize("scale", [1, 3])
def test_pictures_of_any_size_are_enlarged(make_network, size, colors, scale) -> None:
    model = make_network(colors=colors, scale=scale, deploy=True)
    x = 255 * torch.rand(2, colors, *size)
    with torch.no_grad():
        y = model(x)
        assert y.shape == (2, colors, scale * size[0], scale * size[1])
        assert y.isfinite().all()
        # Whole windows need no padding: the rest of the picture is then what padding made of it.
        again = model(pad_to_multiple(x, 8))[..., : scale * size[0], : scale * size[1]]
    torch.testing.assert_close(y, again)


def test_padding_reflects_where_it_can_and_repeats_where_it_cannot() -> None:
    x = torch.arange(6.0).view(1, 1, 1, 6)
    assert pad_to_multiple(x, 8)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 4, 3]
    assert pad_to_multiple(x, 8)[0, 0, :, 0].tolist() == [0] * 8
    assert pad_to_multiple(x[..., :4], 8)[0, 0, 0].tolist() == [0, 1, 2, 3, 3, 3, 3, 3]
    whole = torch.rand(1, 1, 8, 16)
    assert pad_to_multiple(whole, 8) is whole


def test_pictures_of_a_batch_do_not_see_each_other(make_network) -> None:
    model = make_network()
    x = 255 * torch.rand(3, 3, 17, 31)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]))


@pytest.mark.parametrize(
    "switch",
    [
        {"mask": "dense"},
        {"mask": "sector"},
        {"mask": "random"},
        {"pad_type": "zero_pad"},
        {"pad_type": "ref_pad"},
        {"restore_positions": True},
        {"mask_values": True},
        {"mask_values": True, "restore_positions": True},
    ],
)
def test_every_switch_of_the_attention_changes_the_output(make_network, switch) -> None:
    x = 255 * torch.rand(1, 3, 24, 24)
    outputs = []
    for changes in ({}, switch):
        for backend in ("fast", "reference"):
            model = make_network(**changes)
            set_attention_backend(model, backend)
            with torch.no_grad():
                outputs.append(model(x))
    torch.testing.assert_close(outputs[2], outputs[3], rtol=1e-5, atol=1e-3)
    assert (outputs[0] - outputs[2]).abs().max() > 1


def test_without_a_mask_restoring_and_masking_values_change_nothing(make_network) -> None:
    x = 255 * torch.rand(1, 3, 24, 24)
    plain = make_network(mask="dense")
    other = make_network(mask="dense", restore_positions=True, mask_values=True)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), other(x))


@pytest.mark.parametrize("branches", ["hrm", "dbb", "plain"])
def test_ablations_of_hrm_merge_into_the_same_network(branches) -> None:
    with torch.device("meta"):
        model = build({**VARIANTS["tiny_x4"].to_dict(), "branches": branches})
        merged = build(VARIANTS["tiny_x4"].to_dict() | {"deploy": True})
    # A convolution C -> C has 23 C^2 + 36 C parameters with all branches (sheet 3.7), without the
    # two Sobel branches 2 (C^2 + 12 C) less, alone 9 C^2 + C; Tiny has 36 of them.
    width = 32
    one = {"hrm": 23 * width**2 + 36 * width, "plain": 9 * width**2 + width}
    one["dbb"] = one["hrm"] - 2 * (width**2 + 12 * width)
    assert count_parameters(model) == 920_552 - 36 * (one["hrm"] - one[branches])
    small = build(Config(m_elan=2, c_elan=8, branches=branches)).eval()
    shapes = {n: v.shape for n, v in merge(small).state_dict().items()}
    deploy = build(Config(m_elan=2, c_elan=8, deploy=True)).state_dict()
    assert shapes == {n: v.shape for n, v in deploy.items()}
    assert count_parameters(merged) == COUNTS["tiny_x4"][0]


def test_the_input_is_added_where_residual_says_so(make_network) -> None:
    x = 255 * torch.rand(1, 1, 16, 16)
    options = {"scale": 1, "colors": 1}
    with torch.no_grad():
        y, plain = make_network(**options, residual=True)(x), make_network(**options)(x)
    torch.testing.assert_close(y, x + plain)


def test_every_trainable_parameter_has_a_gradient(make_network) -> None:
    model = make_network().train()
    model(255 * torch.rand(2, 3, 16, 24)).abs().mean().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    # b0 is dead: the Sobel mask sums to zero (sheet 3.5).
    for name, p in model.named_parameters():
        if p.requires_grad and not name.endswith(".b0"):
            assert p.grad.abs().max() > 0, name


def test_new_networks_start_as_the_sheet_says() -> None:
    model = build(Config(m_elan=2, c_elan=32, n_share=0))
    block = model.body[0].modules_hrm_a["lcs_a_0"].conv0
    assert block.dbb_1x1_kxk.idconv1.weight.abs().max() == 0
    for sobel in (block.dbb_sobelx, block.dbb_sobely):
        assert 0.0003 < sobel.scale.std() < 0.003
        assert not sobel.mask.requires_grad
        assert sobel.mask.sum((1, 2, 3)).abs().max() < 1e-6


def test_only_blocks_that_share_keep_their_maps() -> None:
    for n_share in (0, 1):
        model = build(Config(m_elan=2, c_elan=8, n_share=n_share, deploy=True)).eval()
        found = [m for m in model.modules() if isinstance(m, NVSMSelfAttention)]
        with torch.no_grad():
            _, maps = found[0](torch.rand(1, 8, 8, 8))
            assert (maps is not None) == bool(n_share)
            assert len(found) == 2
            if n_share:
                assert found[1](torch.rand(1, 8, 8, 8), maps)[1] is maps
    with pytest.raises(ValueError, match="reuses maps"):
        NVSMSelfAttention(Config(), block=0, shared=True)(torch.rand(1, 32, 8, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"m_elann": 4}, "unknown network option 'm_elann'"),
        ({"colors": 2}, "colors 2: expected one of 1, 3"),
        ({"mask": "stripes"}, "mask 'stripes': expected one of sparse"),
        ({"branches": "rep"}, "branches 'rep'"),
        ({"pad_type": "reflect"}, "pad_type 'reflect'"),
        ({"scale": 0}, "scale 0: expected an integer from 1 up"),
        ({"scale": 2.5}, "scale 2.5: expected an integer"),
        ({"c_elan": 9}, "c_elan 9: expected an even width"),
        ({"rgb_range": 0}, "rgb_range 0"),
        ({"m_elan": 1, "n_share": 1}, "gives no block"),
        ({"window_sizes": [8]}, "expected two or more"),
        ({"window_sizes": [8, 7]}, "mask 'sparse' with window 7"),
        ({"mask": "random", "restore_positions": True}, "cannot be restored"),
        ({"scale": 2, "residual": True}, "residual with scale 2"),
    ],
)
def test_a_wrong_description_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(options)


def test_other_inputs_are_refused(make_network) -> None:
    with pytest.raises(ValueError, match=r"expected \(batch, 3, height, width\)"):
        make_network()(torch.rand(1, 1, 8, 8))


def test_a_config_survives_as_plain_data() -> None:
    config = Config(m_elan=4, window_sizes=(16, 8), branches="dbb")
    assert Config.of(config.to_dict()) == config
    assert Config.of({"window_sizes": [16, 8]}).window_sizes == (16, 8)
