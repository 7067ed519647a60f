"""The authors' layout, and what is refused as not theirs."""

from __future__ import annotations

import pytest
import torch

from adabin import VARIANTS, build, load_official
from adabin.pipeline import load_network, network_metadata
from papers_shared.checkpoints import load_file, load_state_dict, save_state_dict

SMALL = {"num_blocks": [1, 1, 1]}


def test_the_released_checkpoint_has_195_entries_with_dataparallel_prefix(released_file) -> None:
    content = load_file(released_file)
    assert len(content["state_dict"]) == 195
    assert all(name.startswith("module.") for name in content["state_dict"])
    assert float(content["best_prec1"]) == pytest.approx(100 * 8788 / 9984, abs=1e-4)
    load_official(content["state_dict"], VARIANTS["cifar10_resnet20"])


def test_the_released_network_gets_448_of_the_first_500_right(released_file, cifar10_test) -> None:
    from adabin.eval import predict_logits

    model = load_official(load_state_dict(released_file), VARIANTS["cifar10_resnet20"])
    logits = predict_logits(model, cifar10_test.images[:500])
    right = int((logits.argmax(1) == cifar10_test.labels[:500]).sum())
    assert abs(right - 448) <= 3  # float32: single activations flip


def test_a_recu_like_checkpoint_is_refused_by_name() -> None:
    state = {k: v for k, v in build(SMALL).state_dict().items() if "binary_a" not in k}
    with pytest.raises(ValueError, match=r"no 'binary_a' entries.*ReCU"):
        load_official(state, SMALL)


def test_another_depth_is_refused_with_the_names() -> None:
    state = build({"num_blocks": [2, 1, 1]}).state_dict()
    with pytest.raises(ValueError, match=r"unexpected \(layer1.1.conv1.weight"):
        load_official(state, SMALL)


def test_a_file_of_ours_says_itself_which_network_it_is(tmp_path) -> None:
    from adabin.model import Config

    config = Config.of(SMALL)
    model = build(config).eval()
    path = tmp_path / "model.safetensors"
    save_state_dict(model.state_dict(), path, metadata=network_metadata(config))
    loaded, said = load_network(str(path))
    assert said == config
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(x), model(x))


def test_a_file_without_a_name_is_recognised_by_its_shapes(tmp_path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"state_dict": build(VARIANTS["cifar10_resnet20"]).state_dict()}, path)
    assert load_network(str(path))[1] == VARIANTS["cifar10_resnet20"]


def test_only_one_checkpoint_was_released() -> None:
    with pytest.raises(ValueError, match="released no checkpoint of imagenet_resnet18"):
        load_network("released", variant="imagenet_resnet18")
