"""The networks: sizes and operations of the sheet, any depth, clear refusals."""

from __future__ import annotations

import pytest
import torch

from adabin import VARIANTS, Config, build
from adabin.layers import AdaBinConv2d
from papers_shared.complexity import count_macs, count_parameters

# parameters, binary weights, binary MACs, full-precision MACs of convolutions and linear layers
COUNTS = {
    "cifar10_resnet20": (271_262, 267_264, 40_108_032, 443_008),
    "cifar10_resnet18": (11_182_826, 10_985_472, 547_356_672, 8_066_048),
    "cifar10_vgg_small": (4_663_700, 4_571_136, 603_979_776, 3_620_864),
    "imagenet_resnet18": (11_701_400, 10_985_472, 1_676_279_808, 137_793_536),
    "imagenet_resnet34": (21_817_016, 21_086_208, 3_525_967_872, 137_793_536),
    # ReActNet-A's published 4.82e9 binary and 0.12e8 other operations
    "imagenet_mobilenet": (29_333_734, 28_253_184, 4_816_896_000, 11_862_016),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_and_operations_are_those_of_the_sheet(variant: str) -> None:
    with torch.device("meta"):
        model = build(VARIANTS[variant]).eval()
    size = VARIANTS[variant].image_size
    macs = count_macs(
        model,
        (1, 3, size, size),
        rule="conv_linear",
        is_binary=lambda module: isinstance(module, AdaBinConv2d),
    )
    binary = sum(m.weight.numel() for m in model.modules() if isinstance(m, AdaBinConv2d))
    ours = (count_parameters(model), binary, macs.binary, macs.total - macs.binary)
    assert ours == COUNTS[variant]


def test_the_deep_stem_has_11_720_760_parameters() -> None:
    with torch.device("meta"):
        model = build({"arch": "imagenet_resnet", "num_classes": 1000, "deep_stem": True})
    assert count_parameters(model) == 11_720_760


@pytest.mark.parametrize("size", [16, 32, 48])
def test_resnet20_takes_pictures_of_any_size(size: int) -> None:
    model = build({"num_blocks": [1, 1, 1]}).eval()
    assert model(torch.randn(2, 3, size, size)).shape == (2, 10)


def test_the_float_twin_has_no_binary_side() -> None:
    model = build({"num_blocks": [1, 1, 1], "a_bit": 32, "w_bit": 32}).eval()
    x = torch.randn(2, 3, 16, 16)
    assert len(model(x).unique()) == 20


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_bloks": [1]}, "unknown network option 'num_bloks'"),
        ({"arch": "resnet50"}, "no architecture 'resnet50'"),
        ({"num_blocks": [1, 1]}, "3 stages need as many depths"),
    ],
)
def test_a_wrong_description_is_refused(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(config)


def test_the_mobilenet_takes_multiples_of_32() -> None:
    model = build(VARIANTS["imagenet_mobilenet"]).eval()
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 1000)
    with pytest.raises(ValueError, match="multiples of 32"):
        model(torch.randn(1, 3, 65, 64))


def test_vgg_small_refuses_other_sizes() -> None:
    with pytest.raises(ValueError, match="32x32"):
        build(VARIANTS["cifar10_vgg_small"]).eval()(torch.randn(1, 3, 64, 64))


def test_a_config_survives_as_plain_data() -> None:
    config = Config("imagenet_resnet", layers=(3, 4, 6, 3), form="paper")
    assert Config.of(config.to_dict()) == config
