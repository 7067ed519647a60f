"""The detectors' own recipes: what their configurations come to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from genimage import detectors
from genimage.augment import InValidation
from genimage.cli import CONFIGS
from genimage.config import TrainConfig
from genimage.degradations import BlurJpeg, gaussian_blur, jpeg
from genimage.model import VARIANTS, build
from genimage.pictures import Geometry, from_tensor, to_tensor
from genimage.train import geometry_of, learning_rate_factor, make_scheduler
from papers_shared.cli import find_config, load_config


def recipe(name: str, **changes: Any) -> TrainConfig:
    return load_config(TrainConfig, find_config(name, CONFIGS), {"data": "x", **changes})


@pytest.mark.parametrize(
    ("name", "start"), [("resnet50", 1e-4), ("deit_s", 1e-6), ("swin_t", 5e-7), ("spec", 0.01)]
)
def test_warm_ups_begin_where_their_authors_let_them(name: str, start: float) -> None:
    config = recipe(name)
    assert config.lr * learning_rate_factor(config, 0, 10**6) == pytest.approx(start, rel=1e-2)
    top = learning_rate_factor(config, round(config.warmup * 1000), 1000)
    assert top == pytest.approx(1)


def test_resnet50s_last_ten_epochs_stay_at_the_lowest_rate() -> None:
    config = recipe("resnet50")
    rates = [config.lr * learning_rate_factor(config, 100 * e, 100) for e in (199, 200, 205, 210)]
    assert rates[0] > 2 * config.lr_end
    assert rates[1:] == pytest.approx([config.lr_end] * 3)


def test_cnnspots_rate_falls_after_five_epochs_without_a_gain() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make_scheduler(optimizer, recipe("cnnspot"), 1)
    rates = []
    for accuracy in (0.5, 0.6, *[0.6005] * 6):
        scheduler.step(accuracy)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1] * 6 + [0.1] * 2)


def test_cnnspot_is_trained_and_validated_at_256_and_tested_as_files_are(make_picture) -> None:
    preset = detectors.preset_of("cnnspot")
    assert preset.geometry.resize is None
    geometry = geometry_of(preset, recipe("cnnspot"))
    assert (geometry.resize, geometry.crop) == (256, 224)
    assert geometry_of(detectors.preset_of("photo_resnet"), recipe("shipped")) == Geometry(32)


def test_validation_blurs_and_compresses_in_the_middle_of_the_ranges(make_picture) -> None:
    def entry(path: str) -> Any:
        return SimpleNamespace(path=path)

    picture = make_picture(1, (64, 48), smooth=True)
    step = InValidation(BlurJpeg(probability=1.0), Geometry(24, 48, interpolation="bilinear"))
    blurred = gaussian_blur(to_tensor(picture).permute(1, 2, 0).numpy(), 1.5)
    expected = jpeg(from_tensor(torch.from_numpy(blurred).permute(2, 0, 1)), 65)
    assert torch.equal(to_tensor(step(picture, entry("0"))), to_tensor(expected))
    half = InValidation(BlurJpeg(probability=0.5), step.geometry)
    found = [to_tensor(half(picture, entry(str(i)))) for i in range(12)]
    assert len({tuple(f.flatten().tolist()) for f in found}) > 2
    again = to_tensor(half(picture, entry("3")))
    assert torch.equal(again, found[3])


@pytest.mark.parametrize(("name", "rate"), [("deit_s", 0.1), ("swin_t", 0.2)])
def test_transformers_drop_paths_as_their_authors(name: str, rate: float) -> None:
    with torch.device("meta"):
        network = build(VARIANTS[name])
    rates = [getattr(m, "drop_prob", 0) for m in network.modules() if "DropPath" in str(type(m))]
    assert max(rates) == pytest.approx(rate)
