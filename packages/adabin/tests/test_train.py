"""Training: the recipes, resuming, and what makes it small."""

from __future__ import annotations

import io
import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adabin import train as training
from adabin.config import TrainConfig
from adabin.data import average_down, flip_and_crop, normalise
from adabin.model import Config, build
from papers_shared.checkpoints import load_state_dict
from papers_shared.cli import find_config, load_config
from papers_shared.data.cifar10 import Cifar10
from papers_shared.images import write_image
from papers_shared.workspace import package_folder

CONFIGS = sorted((package_folder("adabin") / "configs").glob("*.yaml"))
SMALL = {"num_blocks": (1, 1, 1), "image_size": 16, "batch_size": 8, "workers": 0, "log_every": 1}


@pytest.fixture
def tiny_cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 training and 8 test pictures in place of CIFAR-10."""

    def load(split: str, **_: object) -> Cifar10:
        generator = torch.Generator().manual_seed(len(split))
        n = 24 if split == "train" else 8
        images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.arange(n) % 10
        return Cifar10(images, labels, torch.ones(n, dtype=torch.bool), "test", {})

    monkeypatch.setattr(training, "load_cifar10", load)


def config(output: Path, **changes: object) -> TrainConfig:
    return load_config(TrainConfig, None, {**SMALL, "output": output, **changes})


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_state_dict(output / "model.safetensors")


def test_an_interrupted_training_ends_bit_for_bit_like_an_uninterrupted_one(
    tiny_cifar, tmp_path, monkeypatch
) -> None:
    training.train(config(tmp_path / "whole", epochs=2))

    class PowerCutError(RuntimeError):
        pass

    calls = itertools.count()
    schedule = training.set_gradient_schedule

    def fails_at_the_second_epoch(*args: object) -> object:
        if next(calls) == 1:
            raise PowerCutError
        return schedule(*args)

    monkeypatch.setattr(training, "set_gradient_schedule", fails_at_the_second_epoch)
    with pytest.raises(PowerCutError):
        training.train(config(tmp_path / "cut", epochs=2))
    monkeypatch.setattr(training, "set_gradient_schedule", schedule)
    training.train(config(tmp_path / "cut", epochs=2))
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_a_finished_training_is_only_tested_again(tiny_cifar, tmp_path) -> None:
    first = training.train(config(tmp_path / "run", epochs=1))
    again = training.train(config(tmp_path / "run", epochs=1))
    assert again.train_loss == first.train_loss
    assert again.accuracy == first.accuracy


def test_going_on_with_another_setting_is_refused(tiny_cifar, tmp_path) -> None:
    training.train(config(tmp_path / "run", epochs=1))
    with pytest.raises(ValueError, match="lr"):
        training.train(config(tmp_path / "run", epochs=1, lr=0.2))


def test_paths_may_change_before_a_run_goes_on_but_not_the_loss(
    tiny_cifar, tmp_path, monkeypatch
) -> None:
    teacher = training.loss_function(None, torch.device("cpu"))
    monkeypatch.setattr(training, "loss_function", lambda *_: teacher)
    start = training.train(config(tmp_path / "start", epochs=1))
    run = {"output": tmp_path / "run", "epochs": 1, "teacher": Path("teacher.pth")}
    first = training.train(config(**run, init=start.path))
    moved = start.path.rename(tmp_path / "moved.safetensors")
    run |= {"teacher": tmp_path / "teacher.pth"}
    again = training.train(config(**run, init=moved, data_path=tmp_path))
    assert again.train_loss == first.train_loss
    with pytest.raises(ValueError, match="teacher"):
        training.train(config(**run | {"teacher": None}))


def test_step_two_starts_from_the_weights_of_step_one(tiny_cifar, tmp_path) -> None:
    step1 = training.train(config(tmp_path / "step1", epochs=1, w_bit=32, optimizer="adam"))
    result = training.train(
        config(tmp_path / "step2", epochs=1, init=step1.path, lr=0.0, lr_schedule="linear", seed=5)
    )
    one, two = weights(tmp_path / "step1"), weights(result.path.parent)
    assert torch.equal(one["layer1.0.conv1.weight"], two["layer1.0.conv1.weight"])


def test_decay_acts_on_everything_or_on_what_reactnet_decays() -> None:
    model = build({"num_blocks": [1, 1, 1]})
    groups = training.make_optimizer(model, TrainConfig()).param_groups
    assert [len(g["params"]) for g in groups] == [len(list(model.parameters()))]
    decayed, free = training.make_optimizer(model, TrainConfig(decay="conv")).param_groups
    assert free["weight_decay"] == 0
    ids = {id(p) for p in decayed["params"]}
    named = dict(model.named_parameters())
    assert id(named["layer1.0.conv1.binary_a.alpha_a"]) in ids
    assert id(named["layer1.0.bn1.weight"]) not in ids


def test_the_learning_rate_falls_to_zero() -> None:
    cosine, linear = TrainConfig(epochs=4), TrainConfig(epochs=4, lr_schedule="linear")
    assert [training.learning_rate_factor(linear, e) for e in (0, 1, 4)] == [1, 0.75, 0]
    assert training.learning_rate_factor(cosine, 2) == pytest.approx(0.5)
    assert training.learning_rate_factor(cosine, 4) == pytest.approx(0)


@pytest.fixture
def tiny_imagenet(tmp_path: Path) -> Path:
    """train/ and val/ of three classes with four pictures each."""
    for split, label, i in itertools.product(("train", "val"), "abc", range(4)):
        folder = tmp_path / "imagenet" / split / label
        folder.mkdir(parents=True, exist_ok=True)
        write_image(torch.rand(3, 8, 8), folder / f"{i}.png")
    return tmp_path / "imagenet"


def test_train_and_val_must_hold_the_networks_classes(tiny_imagenet) -> None:
    run, network = TrainConfig(data=str(tiny_imagenet)), Config("imagenet_resnet", num_classes=3)
    training.imagenet_task(run, network)
    (tiny_imagenet / "val" / "b").rename(tiny_imagenet / "val" / "d")
    with pytest.raises(ValueError, match="only one of train/ and val/ holds the class b"):
        training.imagenet_task(run, network)
    shutil.rmtree(tiny_imagenet / "val" / "d")
    with pytest.raises(ValueError, match=r"val holds 2 class folders, the network has 3"):
        training.imagenet_task(run, network)


def test_a_limited_folder_keeps_pictures_of_all_classes(tiny_imagenet) -> None:
    run = TrainConfig(data=str(tiny_imagenet), limit=6, seed=0)
    network = Config("imagenet_resnet", num_classes=3)
    kept = training.imagenet_task(run, network).pictures
    assert len(kept) == 6
    assert {label for _, label in kept} == {0, 1, 2}
    again = training.imagenet_task(replace(run, seed=1), network).pictures
    assert kept.indices == again.indices


def test_a_folder_may_move_before_a_run_goes_on(tiny_imagenet, tmp_path, monkeypatch) -> None:
    small = Config("imagenet_resnet", num_classes=3)
    monkeypatch.setattr(training, "variant_config", lambda _: small)
    run = {"variant": "small", "image_size": 224, "num_blocks": (1, 1, 1, 1), "epochs": 1}
    run |= {"output": tmp_path / "run", "batch_size": 4, "limit": 4, "test_limit": 2}
    first = training.train(config(**run, data=str(tiny_imagenet)))
    moved = tiny_imagenet.rename(tmp_path / "moved")
    assert training.train(config(**run, data=str(moved))).accuracy == first.accuracy


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(file: Path) -> None:
    training.network_config(load_config(TrainConfig, file))


def test_the_defaults_are_the_authors_cifar10_recipe() -> None:
    named = load_config(TrainConfig, find_config("cifar10_resnet20", "adabin/configs"))
    assert named == TrainConfig()


def test_augmentation_flips_before_it_crops_and_draws_from_its_generator() -> None:
    image = torch.arange(3 * 32 * 32).reshape(3, 32, 32).remainder(251).to(torch.uint8)
    views = {
        flip_and_crop((image, 1), torch.Generator().manual_seed(s))[0].sum().item()
        for s in range(20)
    }
    assert len(views) > 10
    a, b = (flip_and_crop((image, 1), torch.Generator().manual_seed(3))[0] for _ in range(2))
    assert torch.equal(a, b)


def test_normalisation_is_imagenets() -> None:
    grey = normalise(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
    expected = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    torch.testing.assert_close(grey[0, :, 0, 0], expected)


def test_pictures_are_averaged_down_by_whole_blocks() -> None:
    image = torch.tensor([[0, 10], [20, 30]], dtype=torch.uint8).expand(1, 3, 2, 2)
    assert average_down(image, 1).unique().tolist() == [15]
    with pytest.raises(ValueError, match="does not divide"):
        average_down(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), 5)


def test_both_forms_of_cifar10_read_alike(tmp_path, monkeypatch) -> None:
    """The original archive and the mirror's packing, made here with the same two pictures."""
    import pickle
    import tarfile

    from PIL import Image

    from papers_shared.data import cifar10

    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (100, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, 10, 100)
    rows = {b"data": pictures.reshape(100, -1), b"labels": labels.tolist()}
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        content = pickle.dumps(rows, protocol=4)
        info = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    tile = io.BytesIO()
    rgb = pictures.transpose(0, 2, 3, 1).reshape(3200, 32, 3)
    Image.fromarray(rgb).save(tile, "webp", lossless=True)
    packed = tmp_path / "cifar10_test.npz"
    np.savez(
        packed,
        webp=np.frombuffer(tile.getvalue(), dtype=np.uint8),
        offsets=np.array([0, len(tile.getvalue())]),
        y=labels,
        exact=np.ones(100, dtype=bool),
    )
    (a,), (b,) = cifar10._read_archive(archive, "test"), cifar10._read_tiles(packed, "test")
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_cifar10_batch_that_asks_for_code_is_refused() -> None:
    import pickle

    from papers_shared.data.cifar10 import _ArraysOnly

    content = pickle.dumps({"data": print})
    with pytest.raises(ValueError, match=r"builtins\.print"):
        _ArraysOnly(io.BytesIO(content)).load()
