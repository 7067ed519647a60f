"""Packed networks give the outputs of the dense ones; files hold bits."""

import json
import os

import pytest
import torch
from torch import nn

from adabin import VARIANTS, build
from adabin.config import ExportConfig
from adabin.data import normalise
from adabin.eval import predict_logits
from adabin.layers import AdaBinConv2d, Maxout
from adabin.mobilenet import ShiftedPReLU
from adabin.official import load_released
from adabin.packed import (
    load_packed,
    main,
    pack,
    packed_weight_bytes,
    save_packed,
)
from papers_shared.data.cifar10 import load_cifar10

SMALL_IMAGENET = {"arch": "imagenet_resnet", "layers": (1, 1, 1, 1), "num_classes": 7}
SMALL_NETWORKS = {
    "resnet20": {"num_blocks": (1, 1, 1)},
    "resnet20, paper form": {"num_blocks": (1, 1, 1), "form": "paper"},
    "cifar resnet18": {"arch": "cifar10_resnet18", "num_blocks": (1, 1, 1, 1)},
    "vgg": {"arch": "cifar10_vgg_small"},
    "imagenet": SMALL_IMAGENET,
    "imagenet, deep stem": {**SMALL_IMAGENET, "deep_stem": True},
    "imagenet, strided shortcut": {**SMALL_IMAGENET, "avg_down": False},
    "mobilenet": {"arch": "imagenet_mobilenet", "num_classes": 7},
}


def network(config, *, dtype=torch.float64, seed=0):
    """A network whose statistics and slopes are those of no fresh one, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    model = build(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, -1, 2, generator=generator)  # some turn the sign
        elif isinstance(module, Maxout):
            nn.init.uniform_(module.pos_scale, -0.2, 1.5, generator=generator)
            nn.init.uniform_(module.neg_scale, -0.5, 0.5, generator=generator)
        elif isinstance(module, ShiftedPReLU):
            for tensor in (module.shift_in, module.shift_out, module.prelu.weight):
                nn.init.normal_(tensor, 0, 0.3, generator=generator)
        elif isinstance(module, AdaBinConv2d):
            nn.init.uniform_(module.binary_a.alpha_a, 0.4, 1, generator=generator)
            nn.init.uniform_(module.binary_a.beta_a, -0.3, 0.3, generator=generator)
    return model.to(dtype).eval()


def pictures(model, count=2):
    size = 64 if hasattr(model, "fc") and not hasattr(model, "conv5") else 32
    dtype = next(model.parameters()).dtype
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_a_packed_network_equals_the_dense_one(name):
    model = network(SMALL_NETWORKS[name])
    x = pictures(model)
    with torch.no_grad():
        torch.testing.assert_close(pack(model)(x), model(x), rtol=1e-10, atol=1e-10)


def test_pooling_before_or_after_maxout_is_the_same_for_increasing_slopes():
    model = network(SMALL_IMAGENET)
    with torch.no_grad():
        model.nonlinear1.pos_scale.abs_()
        model.nonlinear1.neg_scale.abs_()
        x = pictures(model)
        torch.testing.assert_close(pack(model)(x), model(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("alpha", [0.6, -0.6])
def test_a_packed_layer_equals_the_dense_one_at_its_threshold(form, alpha):
    conv = AdaBinConv2d(9, 8, 3, stride=2, padding=1, bias=True, form=form).double()
    nn.init.constant_(conv.binary_a.alpha_a, alpha)
    x = torch.randn(2, 9, 10, 10, dtype=torch.float64).relu()  # zeros lie on the threshold, 0
    with torch.no_grad():
        torch.testing.assert_close(conv.pack()(x), conv(x), rtol=1e-12, atol=1e-12)


def test_a_file_holds_the_network(tmp_path):
    model = pack(network({"num_blocks": (1, 2, 1), "num_classes": 5, "form": "paper"}))
    file = tmp_path / "small.safetensors"
    save_packed(model, file)
    state = torch.random.get_rng_state()
    loaded = load_packed(file)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert loaded.config == model.config
    assert loaded.config.form == "paper"
    x = pictures(model)
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("name", ["cifar10_resnet20", "imagenet_resnet18"])
def test_a_file_takes_little_more_than_its_bits(name, tmp_path):
    model = pack(build(VARIANTS[name]))
    binary = {"cifar10_resnet20": 267_264, "imagenet_resnet18": 10_985_472}[name]
    assert packed_weight_bytes(model) == binary // 8
    file = tmp_path / "network.safetensors"
    save_packed(model, file)
    reals = sum(v.numel() for v in model.state_dict().values() if v.is_floating_point())
    assert file.stat().st_size < binary / 8 + 4 * reals + 15_000  # the rest names the tensors
    dense = sum(p.numel() for p in build(VARIANTS[name]).parameters())
    assert reals + binary < 1.004 * dense  # nothing is stored twice


def test_what_cannot_be_packed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to pack"):
        pack(build({"w_bit": 32}))
    with pytest.raises(ValueError, match="only networks with Maxout"):
        pack(build({"nonlinearity": "hardtanh"}))
    with pytest.raises(ValueError, match="weight_set 'equalised'"):
        pack(build({"weight_set": "l1"}))
    with pytest.raises(ValueError, match="Linear is not one of the networks"):
        pack(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="groups must be 1"):
        AdaBinConv2d(4, 4, 3, groups=2).pack()
    from papers_shared.checkpoints import save_state_dict

    file = tmp_path / "other.safetensors"
    save_state_dict({"head.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(ValueError, match="is no packed network"):
        load_packed(file)
    metadata = {"adabin_packed": json.dumps({"arch": "cifar10_resnet20"})}
    save_state_dict({"head.weight": torch.zeros(2, 2)}, file, metadata=metadata)
    with pytest.raises(ValueError, match="missing"):
        load_packed(file)


@pytest.fixture(scope="module")
def released():
    if not os.environ.get("PAPERS_MIRROR"):
        pytest.skip("needs PAPERS_MIRROR: the released checkpoint and CIFAR-10")
    return load_released(), load_cifar10("test").images[:40]


def test_the_released_network_gives_its_logits_from_bits(released):
    model, images = released
    model = model.double()
    packed, dense = predict_logits(pack(model), images), predict_logits(model, images)
    torch.testing.assert_close(packed, dense, rtol=1e-9, atol=1e-9)
    model.float()


def test_export_writes_the_released_network(released, tmp_path, capsys):
    file = tmp_path / "resnet20.safetensors"
    assert main(ExportConfig(output=file)) == 0
    assert "33,408 of them binary weights" in capsys.readouterr().out
    assert file.stat().st_size < 70_000
    x = normalise(released[1])
    same = load_packed(file)(x).argmax(1) == pack(released[0])(x).argmax(1)
    assert same.all()


def test_export_refuses_another_kind_of_file(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        main(ExportConfig(output=tmp_path / "network.pt"))
    assert not list(tmp_path.iterdir())
