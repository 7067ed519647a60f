"""Training: its configurations, an interruption that leaves no trace, what a run may not change."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dit_sr import VARIANTS, Config, load_pipeline
from dit_sr.config import TrainConfig
from dit_sr.train import network_config, train
from papers_shared.checkpoints import load_state_dict
from papers_shared.cli import find_config, load_config
from papers_shared.diffusion import train_denoiser
from papers_shared.images import write_image
from papers_shared.workspace import package_folder

CONFIGS = sorted((package_folder("dit_sr") / "configs").glob("*.yaml"))
SHORT = {
    "variant": "small",
    "prediction": "residual",
    "crop": 64,
    "rescale": False,
    "pool": 4,
    "pool_size": 80,
    "degradation": "testing",
    "steps": 4,
    "batch_size": 2,
    "lr": 1e-3,
    "warmup": 2,
    "ema_decay": 0.5,
    "validation": "",
    "workers": 0,
    "log_every": 1,
    "save_every": 2,
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two photos, and the folder of the pairs that the first run makes of them."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(2):
        small = torch.rand(1, 3, 25, 25, generator=torch.Generator().manual_seed(i))
        large = torch.nn.functional.interpolate(small, size=(200, 200), mode="bicubic")
        write_image(large[0].clamp(0, 1), folder / f"{i}.png")
    return {"photos": [str(folder)], "pool_folder": tmp_path_factory.mktemp("pool")}


@pytest.fixture
def run(tmp_path: Path, pool: dict[str, Any], autoencoder_file: str, tiny: Config) -> Any:
    def start(name: str, network: Config = tiny, **changes: Any) -> Any:
        given = {**SHORT, **pool, "autoencoder": autoencoder_file, "output": tmp_path / name}
        config = load_config(TrainConfig, None, {**given, **changes})
        return train(config, network=network)

    return start


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_state_dict(folder / "model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


class PowerCutError(RuntimeError):
    pass


@pytest.mark.parametrize("cut_at", [0, 3])
def test_an_interrupted_training_ends_bit_for_bit_like_an_uninterrupted_one(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_at: int
) -> None:
    whole = run("whole")
    calls, loss = itertools.count(), train_denoiser.resshift_loss

    def fails(*args: Any, **options: Any) -> Any:
        if next(calls) == cut_at:
            raise PowerCutError
        return loss(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(train_denoiser, "resshift_loss", fails)
        with pytest.raises(PowerCutError):
            run("cut")
    torch.manual_seed(99)
    cut = run("cut")
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert equal(load_state_dict(whole.path), load_state_dict(cut.path))
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "cut")]
    assert logs[0] == logs[1]
    assert logs[0].count('"loss"') == 4


def test_what_was_trained_upscales_and_says_what_it_is(run: Any, tiny: Config) -> None:
    trained = run("run", steps=2)
    pipeline = load_pipeline(str(trained.path))
    assert pipeline.unet.architecture == tiny
    assert pipeline.scheduler.config.prediction_type == "residual"
    assert len(pipeline.scheduler) == 15
    assert pipeline.enlarge(torch.rand(3, 9, 5), 2).shape == (3, 36, 20)
    averaged = trained.model.state_dict()
    assert all(torch.equal(v, averaged[k]) for k, v in pipeline.unet.state_dict().items())


def test_training_changes_every_weight(run: Any, tmp_path: Path, tiny: Config) -> None:
    before = {k: v.clone() for k, v in run("none", lr=0.0).model.state_dict().items()}
    run("some")
    after = weights(tmp_path / "some")
    same = [k for k, v in before.items() if v.is_floating_point() and torch.equal(v, after[k])]
    assert [k for k in same if not k.endswith("attn_mask")] == []


def test_a_finished_training_goes_on_only_for_more_steps(run: Any, tmp_path: Path) -> None:
    run("run", steps=2)
    once = weights(tmp_path / "run")
    run("run", steps=2)
    assert equal(weights(tmp_path / "run"), once)
    run("run", steps=3)
    assert not equal(weights(tmp_path / "run"), once)


def test_going_on_with_another_setting_is_refused(run: Any, tiny: Config) -> None:
    run("run", steps=1)
    with pytest.raises(ValueError, match=r"lr=0\.001 \(now 0\.2\)"):
        run("run", steps=1, lr=0.2)
    with pytest.raises(ValueError, match="network="):
        run("run", network=replace(tiny, mlp_ratio=2), steps=1)


def test_a_run_starts_from_given_weights(run: Any, tmp_path: Path) -> None:
    first = run("first", steps=1)
    run("second", steps=1, lr=0.0, init=first.path, seed=5)
    assert equal(weights(tmp_path / "second"), load_state_dict(first.path))


def test_pairs_are_degraded_anew_without_a_pool(run: Any, tmp_path: Path) -> None:
    run("run", steps=1, pool=0)
    assert not (tmp_path / "run" / "pairs.safetensors").exists()


# --- what is refused before anything is computed


def test_an_autoencoder_of_other_channels_is_refused(run: Any, tiny: Config) -> None:
    with pytest.raises(ValueError, match="has 3 latent channels, variant small takes 8"):
        run("run", network=replace(tiny, in_channels=8, out_channels=8))


def test_crops_that_do_not_fit_the_network_are_refused(run: Any, pool: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="crop 48 is no multiple of 32"):
        run("run", crop=48, pool_folder=None)


def test_photos_that_are_too_small_are_refused(run: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"none of 2 photos of .* is at least 224 pixels"):
        run("run", crop=224, pool=0)


def test_an_unknown_variant_is_refused(run: Any) -> None:
    with pytest.raises(ValueError, match="no variant 'large'; known: realsr, realsr_lite"):
        run("run", variant="large")


# --- configurations


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(file: Path) -> None:
    config = load_config(TrainConfig, file)
    network = network_config(config)
    factor = 8 if config.autoencoder.startswith("ffhq512_vq_f8") else 4
    assert config.crop % (factor * network.alignment) == 0
    assert config.rescale == (file.stem != "small")
    assert config.validation == ("" if file.stem == "faceir" else "val_sr")  # is of scale 4


def test_the_defaults_are_the_authors_recipe() -> None:
    config = TrainConfig()
    assert network_config(config) == VARIANTS["realsr"]
    recipe = (config.lr, config.warmup, config.batch_size, config.steps, config.ema_decay)
    assert recipe == (5e-5, 5000, 64, 300_000, 0.999)
    assert (config.crop, config.degradation, config.lr_schedule) == (256, "training", "constant")
    assert config.rescale  # dit_sr sheet 4.3


def test_ablations_change_conditioning_and_mask() -> None:
    config = TrainConfig(variant="small", conditioning="adaln_zero", mask="swin")
    changed = replace(VARIANTS["small"], conditioning="adaln_zero", mask="swin")
    assert network_config(config) == changed


def test_the_small_networks_configuration_is_named_like_it() -> None:
    config = load_config(TrainConfig, find_config("small", "dit_sr/configs"))
    assert config.variant == "small"
