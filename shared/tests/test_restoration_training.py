"""The loop that trains restoration networks: what it repeats, resumes, averages and writes."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from papers_shared.checkpoints import file_metadata, load_state_dict, save_state_dict
from papers_shared.images import read_image, to_uint8, write_image
from papers_shared.metrics.restoration import PSNR
from papers_shared.restoration.commands import TrainConfig
from papers_shared.restoration.family import Restorer, load_restorer, network_metadata
from papers_shared.restoration.task import Task
from papers_shared.restoration.train import (
    learning_rate_factor,
    loss_function,
    stage_at,
    train_restorer,
)
from papers_shared.restoration.validation import degrade, validation_psnr

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
toy = importlib.import_module("toy_trained_restorer")


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    """Each run chooses its precision: accelerate would keep the first one's."""
    from accelerate.state import AcceleratorState

    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, side in enumerate((60, 70)):
        small = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(i))
        large = torch.nn.functional.interpolate(small, size=(side, side), mode="bicubic")
        write_image(large[0].clamp(0, 1), folder / f"{i}.png")
    return str(folder)


def config(output, photos, **changes):
    options = {
        "variant": "toy",
        "task": "denoise",
        "level": [25.0],
        "photos": [photos],
        "output": output,
        "patch": 16,
        "batch_size": 4,
        "repeat": 6,
        "steps": 8,
        "lr": 1e-3,
        "log_every": 2,
        "save_every": 3,
    }
    return TrainConfig(**(options | changes))


def equal(one, other):
    one, other = load_state_dict(one), load_state_dict(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


KINDS = {
    "noise": {
        "level": [0.0, 50.0],
        "mixup": 0.5,
        "clip": 1.0,
        "ema_decay": 0.9,
        "progressive": ["24:2:3"],
        "milestones": [4],
    },
    "sr": {"task": "sr", "scale": 2, "level": [], "channels_last": True},
    "jpeg": {"task": "dejpeg", "channels": 1, "level": [10.0, 40.0], "mixed_precision": "bf16"},
    "rain": {"task": "derain", "level": [], "accumulate": 2, "loss": "charbonnier"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_in_two_parts_equals_one_that_was_not_interrupted(tmp_path, photos, kind):
    whole = train_restorer(config(tmp_path / "a", photos, **KINDS[kind]), toy.FAMILY)
    parts = config(tmp_path / "b", photos, workers=kind == "jpeg", **KINDS[kind])
    train_restorer(replace(parts, steps=5), toy.FAMILY)
    resumed = train_restorer(parts, toy.FAMILY)
    assert equal(whole.path, resumed.path)
    assert whole.loss == resumed.loss
    assert (tmp_path / "a" / "log.jsonl").read_text().count("loss") == 4


def test_a_seed_decides_the_result(tmp_path, photos):
    paths = [
        train_restorer(config(tmp_path / str(i), photos, seed=seed, steps=2), toy.FAMILY).path
        for i, seed in enumerate((0, 0, 1))
    ]
    assert equal(paths[0], paths[1])
    assert not equal(paths[0], paths[2])


def noisy_psnr(photos, level):
    """Of the pictures that validation gives the network."""
    values = []
    for i, path in enumerate(sorted(Path(photos).iterdir())):
        photo, task = to_uint8(read_image(path)), Task("denoise", level=level)
        low, high = degrade(photo, task, level=level, seed=i)
        values.append(float(PSNR()(low[None], high[None])))
    return sum(values) / len(values)


def test_training_restores_better_than_doing_nothing(tmp_path, photos):
    """Also what is written: task, configuration, origin of the pairs."""
    options = config(
        tmp_path, photos, steps=80, lr=2e-2, validation=photos, validate_every=80, lr_end=1e-3
    )
    trained = train_restorer(replace(options, lr_schedule="cosine"), toy.FAMILY)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    validated = next(line["psnr"] for line in lines if "psnr" in line)
    assert validated > noisy_psnr(photos, 25) + 1
    assert trained.loss < 18  # 19.9 levels before: the mean of |noise|
    again = load_restorer(toy.FAMILY, str(trained.path))
    assert again.task == Task("denoise", level=25)
    assert again.config == toy.ToyConfig()
    assert not again.training
    assert file_metadata(trained.path)["trained_on"].endswith("Gaussian noise of 25")


def test_networks_trained_on_synthetic_rain_say_so(tmp_path, photos):
    trained = train_restorer(config(tmp_path, photos, task="derain", level=[], steps=1), toy.FAMILY)
    assert "not real rain" in file_metadata(trained.path)["trained_on"]


def test_pairs_of_files_are_learned(tmp_path, photos):
    for name in ("input", "target"):
        (tmp_path / name).mkdir()
    for path in Path(photos).iterdir():
        for name in ("input", "target"):
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    options = {"task": "deblur", "level": [], "pairs": [tmp_path], "steps": 2}
    validated = {"validation": str(tmp_path), "validate_every": 2}
    trained = train_restorer(config(tmp_path / "run", photos, **options, **validated), toy.FAMILY)
    assert trained.model.task == Task("deblur")
    # Input and target are one file, and the toy begins near the identity.
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert max(json.loads(line).get("psnr", 0) for line in log) > 25


def test_the_average_holds_the_batch_norms_of_the_network(tmp_path, photos):
    trained = train_restorer(config(tmp_path, photos, ema_decay=0.5), toy.FAMILY)
    assert trained.path.name == "model_ema.safetensors"
    average, last = load_state_dict(trained.path), load_state_dict(tmp_path / "model.safetensors")
    assert torch.equal(average["body.0.running_mean"], last["body.0.running_mean"])
    assert not torch.equal(average["head.weight"], last["head.weight"])


def test_a_clipped_gradient_hardly_moves_and_init_says_where_from(tmp_path, photos):
    network, task = toy.Toy(toy.ToyConfig()), Task("denoise", level=25)
    metadata = network_metadata(toy.FAMILY, toy.ToyConfig(), task)
    save_state_dict(network.state_dict(), tmp_path / "start.safetensors", metadata=metadata)
    options = {"init": str(tmp_path / "start.safetensors"), "steps": 2}
    for clip, (least, most) in ((1e-12, (0, 1e-5)), (0.0, (1e-4, 1))):
        made = config(tmp_path / str(clip), photos, clip=clip, **options)
        weight = load_state_dict(train_restorer(made, toy.FAMILY).path)["head.weight"]
        assert least <= (weight - network.head.weight).abs().max() < most


def test_a_network_starts_from_one_of_another_scale(tmp_path, photos, capsys):
    task, given = Task("sr", scale=2), toy.ToyConfig(scale=2)
    network = toy.Toy(given)
    metadata = network_metadata(toy.FAMILY, given, task)
    save_state_dict(network.state_dict(), tmp_path / "x2.safetensors", metadata=metadata)
    options = {"task": "sr", "scale": 4, "level": [], "steps": 1, "lr": 1e-9}
    start = {"init_from": str(tmp_path / "x2.safetensors")}
    trained = train_restorer(config(tmp_path / "x4", photos, **options, **start), toy.FAMILY)
    kept = load_state_dict(trained.path)["head.weight"]
    torch.testing.assert_close(kept, network.head.weight.detach())
    assert "begun anew: tail.0.weight, tail.0.bias" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is made for x2"):
        train_restorer(
            config(tmp_path / "no", photos, **options, init=start["init_from"]), toy.FAMILY
        )
    with pytest.raises(ValueError, match=r"of another shape \(head.weight"):
        wide = config(tmp_path / "w", photos, **options, **start, variant="wide")
        train_restorer(wide, toy.FAMILY)


def test_photos_may_be_smaller_than_the_crops_of_a_later_stage(tmp_path, photos):
    done = train_restorer(config(tmp_path, photos, progressive=["96:2:1"], steps=2), toy.FAMILY)
    assert 0 < done.loss < float("inf")


def test_wrong_runs_are_refused(tmp_path, photos):
    with pytest.raises(ValueError, match="no variant 'giant'; known: toy, wide"):
        train_restorer(config(tmp_path, photos, variant="giant"), toy.FAMILY)
    with pytest.raises(FileNotFoundError, match="neither a folder of photos nor"):
        train_restorer(config(tmp_path, "nowhere"), toy.FAMILY)
    with pytest.raises(ValueError, match="is not made of a photo"):
        pairs = {"task": "deblur", "level": [], "pairs": [Path(photos)], "validation": photos}
        train_restorer(config(tmp_path, photos, **pairs), toy.FAMILY)
    train_restorer(config(tmp_path, photos, steps=1), toy.FAMILY)
    with pytest.raises(ValueError, match=r"level=\[25.0\] \(now \[50.0\]\)"):
        train_restorer(config(tmp_path, photos, level=[50.0]), toy.FAMILY)


# --------------------------------------------------------------------------- parts


def test_learning_rates_step_down_or_follow_a_cosine_after_a_constant_part(tmp_path):
    steps = config(tmp_path, "", milestones=[3, 5], lr_factor=0.5)
    assert [learning_rate_factor(steps, i) for i in range(7)] == [1, 1, 1, 0.5, 0.5, 0.25, 0.25]
    cosine = config(
        tmp_path, "", lr_schedule="cosine", lr_constant=4, steps=8, lr=1e-3, lr_end=1e-4
    )
    rates = [learning_rate_factor(cosine, i) for i in (0, 4, 6, 8)]
    assert rates == pytest.approx([1, 1, 0.55, 0.1])


def test_losses_are_means_in_the_networks_value_range():
    image, target = torch.full((2, 3, 4, 4), 5.0), torch.full((2, 3, 4, 4), 2.0)
    assert loss_function("l1", 255)(image, target) == 3
    assert loss_function("mse", 255)(image, target) == 9
    expected = (9 + (255 * 1e-3) ** 2) ** 0.5
    assert float(loss_function("charbonnier", 255)(image, target)) == pytest.approx(expected)


def test_stages_begin_at_their_steps(tmp_path):
    stages = config(tmp_path, "", progressive=["24:2:3", "32:1:6"]).stages
    assert [stage_at(stages, step).patch for step in (0, 2, 3, 5, 6, 99)] == [
        16,
        16,
        24,
        24,
        32,
        32,
    ]


def test_validation_is_the_psnr_of_whole_pictures():
    """A network without a tail enlarges by the nearest neighbour."""
    network = toy.Toy(toy.ToyConfig(scale=2))
    for parameter in network.tail.parameters():
        torch.nn.init.zeros_(parameter)
    task = Task("sr", scale=2)
    restorer = Restorer(network, config=network, task=task, family=toy.FAMILY).eval()
    generator = torch.Generator().manual_seed(0)
    photo = torch.randint(256, (3, 31, 45), generator=generator).to(torch.uint8)
    low, high = degrade(photo, task, level=None, seed=0)
    assert high.shape == (3, 30, 44)
    image = to_uint8(low).repeat_interleave(2, -1).repeat_interleave(2, -2)
    expected = PSNR(channels="y", crop_border=2)(image[None], high[None])
    assert validation_psnr(restorer, [(low, high)]) == pytest.approx(float(expected))


def test_noise_of_validation_is_seeded_and_not_clipped():
    photo = torch.zeros(3, 64, 64, dtype=torch.uint8)
    task = Task("denoise", level=50)
    low, _ = degrade(photo, task, level=50, seed=1)
    assert float(low.std() * 255) == pytest.approx(50, rel=0.03)
    assert low.min() < -0.4
    assert torch.equal(low, degrade(photo, task, level=50, seed=1)[0])
    assert not torch.equal(low, degrade(photo, task, level=50, seed=2)[0])
