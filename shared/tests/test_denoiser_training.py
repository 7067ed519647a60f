"""Training ResShift-like denoisers: pairs, loss, schedule, validation, what is refused."""

import importlib
import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from papers_shared.checkpoints import load_state_dict
from papers_shared.data import photos as photo_data
from papers_shared.diffusion import train_denoiser as training
from papers_shared.diffusion import training as pairing
from papers_shared.diffusion.commands import DenoiserConfig, PairsConfig
from papers_shared.diffusion.evaluate import check_validation
from papers_shared.diffusion.families import load_pipeline
from papers_shared.diffusion.scheduler import ResShiftScheduler
from papers_shared.diffusion.train_denoiser import (
    PerceptualLoss,
    learning_rate_factor,
    train_denoiser,
)
from papers_shared.diffusion.training import (
    latent_pair,
    pair_loader,
    pair_pool,
    photos_of,
    resshift_loss,
)
from papers_shared.images import write_image
from papers_shared.metrics.restoration import PSNR

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
toy = importlib.import_module("toy_diffusion")


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, side in enumerate((60, 70)):
        small = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(i))
        large = torch.nn.functional.interpolate(small, size=(side, side), mode="bicubic")
        write_image(large[0].clamp(0, 1), folder / f"{i}.png")
    return str(folder)


# --------------------------------------------------------------------------- loss


def latents(count=15):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, count, 3, 8, 8, generator=generator)


class Constant(torch.nn.Module):
    """Predicts one number, and keeps what it was given."""

    def forward(self, x, timesteps, lq):
        self.given = x, timesteps, lq
        return torch.full_like(x, 0.25)


def test_the_loss_is_the_squared_error_of_the_clean_latent():
    z0, z_y, noise = latents()
    steps = torch.arange(15)
    model, scheduler = Constant(), ResShiftScheduler()
    loss, predicted = resshift_loss(
        model, scheduler, z0=z0, z_y=z_y, lq=z_y, timesteps=steps, noise=noise
    )
    torch.testing.assert_close(loss, (z0 - 0.25).square().mean(dim=(1, 2, 3)))
    assert torch.equal(predicted, torch.full_like(z0, 0.25))
    etas = scheduler.training_tables.etas.float()[:, None, None, None]
    z_t = (1 - etas) * z0 + etas * z_y + 2 * etas.sqrt() * noise
    torch.testing.assert_close(model.given[0], z_t / (4 * etas + 1).sqrt(), atol=1e-5, rtol=1e-4)
    assert torch.equal(model.given[1], steps)


def test_a_predicted_residual_gives_the_clean_latent_too():
    z0, z_y, noise = latents()
    scheduler = ResShiftScheduler(prediction_type="residual")
    loss, predicted = resshift_loss(
        Constant(), scheduler, z0=z0, z_y=z_y, lq=z_y, timesteps=torch.arange(15), noise=noise
    )
    torch.testing.assert_close(predicted, z_y - 0.25)
    torch.testing.assert_close(loss, (predicted - z0).square().mean(dim=(1, 2, 3)))


def test_scaled_noise_is_learned_with_the_weights_of_noise():
    """dit_sr sheet 4.1: the error of epsilon_scale is divided by kappa^2 eta."""
    z0, z_y, noise = latents()
    steps = torch.arange(15)
    scale = 2 * ResShiftScheduler().sqrt_etas.float()[:, None, None, None]
    given = {"z0": z0, "z_y": z_y, "lq": z_y, "timesteps": steps, "noise": noise}
    losses = [
        resshift_loss(model, ResShiftScheduler(prediction_type=kind), **given)[0]
        for kind, model in (
            ("epsilon", lambda x, t, lq: torch.full_like(x, 0.25)),
            ("epsilon_scale", lambda x, t, lq: 0.25 * scale.expand_as(x)),
        )
    ]
    torch.testing.assert_close(*losses)


def test_steps_are_drawn_uniformly_and_noise_from_the_global_generator():
    model, z = Constant(), torch.zeros(3000, 1, 1, 1)
    torch.manual_seed(0)
    resshift_loss(model, ResShiftScheduler(), z0=z, z_y=z, lq=z)
    first = model.given
    counts = first[1].bincount(minlength=15)
    assert counts.min() > 130  # 200 expected, 14 is one deviation
    assert counts.numel() == 15
    torch.manual_seed(0)
    resshift_loss(model, ResShiftScheduler(), z0=z, z_y=z, lq=z)
    assert all(map(torch.equal, first, model.given))


def test_both_latents_come_from_the_autoencoder_without_gradients():
    vae = toy.autoencoder()
    batch = {"gt": torch.rand(2, 3, 32, 32) * 2 - 1, "lq": torch.rand(2, 3, 8, 8) * 2 - 1}
    z0, z_y = latent_pair(vae, batch, scale=4)
    assert z0.shape == z_y.shape == (2, 3, 8, 8)
    assert not z0.requires_grad
    assert not z_y.requires_grad
    large = torch.nn.functional.interpolate(batch["lq"], scale_factor=4, mode="bicubic")
    torch.testing.assert_close(z_y, 0.5 * vae.encode(large).latents)


def test_a_perceptual_distance_that_is_nan_counts_nothing_and_spoils_no_gradient():
    loss = object.__new__(PerceptualLoss)
    x = torch.zeros(1, 3, 4, 4, requires_grad=True)
    for factor, expected in ((torch.nan, 0.0), (1.0, 16.0)):
        loss.metric = lambda image, reference, f=factor: f * (image - reference).square().sum() / 3
        distance = loss(x, x.detach() + 2)
        (x.square().sum() + distance).backward()
        assert distance.item() == pytest.approx(expected)
        assert torch.isfinite(x.grad).all()


# --------------------------------------------------------------------------- learning rate


def test_the_learning_rate_warms_up_and_stays():
    config = DenoiserConfig()
    factors = [learning_rate_factor(config, step) for step in (0, 2499, 4999, 5000, 299_999)]
    assert factors == [1 / 5000, 0.5, 1, 1, 1]


def test_a_cosine_falls_to_the_last_learning_rate():
    config = DenoiserConfig(lr_schedule="cosine", steps=405_000)
    assert learning_rate_factor(config, 5000) == 1
    assert learning_rate_factor(config, 205_000) == pytest.approx((1 + 0.4) / 2)
    assert learning_rate_factor(config, 405_000) == pytest.approx(2e-5 / 5e-5)
    assert learning_rate_factor(replace(config, warmup=0), 0) == 1


# --------------------------------------------------------------------------- pairs


def test_only_photos_that_are_large_enough_serve(photos):
    assert [p.shape for p in photos_of([photos], least=65)] == [(3, 70, 70)]
    with pytest.raises(FileNotFoundError, match=r"none of 2 photos of .* is at least 80 pixels"):
        photos_of([photos], least=80)
    with pytest.raises(FileNotFoundError, match="neither a folder of photos nor the name"):
        photos_of(["LSDIR"], least=8)


def test_photos_of_class_folders_stay_in_their_files_where_they_are_many(
    photos, tmp_path, monkeypatch
):
    for i, name in enumerate(("n02", "n01")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes((Path(photos) / f"{i}.png").read_bytes())
    decoded = []
    read = photo_data.read_image
    monkeypatch.setattr(
        photo_data, "read_image", lambda path, **o: decoded.append(path) or read(path, **o)
    )
    few = photos_of([str(tmp_path)], least=1)
    assert len(decoded) == 2
    monkeypatch.setattr(pairing, "IN_MEMORY", 3 * 70 * 70)
    decoded.clear()
    many = photos_of([str(tmp_path)], least=1)
    assert not decoded
    assert [p.shape[1] for p in many] == [70, 60]
    assert all(map(torch.equal, few, many))
    with pytest.raises(FileNotFoundError, match="none of 2 photos"):
        photos_of([str(tmp_path)], least=80)
    # Nothing is asked of photos that any size of serves, once they are too many to be kept.
    (tmp_path / "n02" / "b.png").write_text("no image")
    assert len(photos_of([str(tmp_path)], least=1)) == 3
    with pytest.raises(ValueError, match=r"b\.png cannot be opened"):
        photos_of([str(tmp_path)], least=2)


def pool_of(photos, **changes):
    given = {"crop": 16, "rescale": False, "degradation": "testing", "pool": 3, "pool_size": 32}
    return PairsConfig(photos=[photos], **{**given, **changes})


def test_a_pool_is_made_once_and_refused_to_other_settings(photos, tmp_path):
    config = pool_of(photos)
    high, low = pair_pool(config, scale=4, folder=tmp_path)
    assert (high.shape, low.shape) == ((3, 3, 32, 32), (3, 3, 8, 8))
    assert high.dtype == low.dtype == torch.uint8
    again = pair_pool(config, scale=4, folder=tmp_path)
    assert torch.equal(again[0], high)
    assert torch.equal(again[1], low)
    with pytest.raises(ValueError, match="was made with other settings"):
        pair_pool(replace(config, pairs_seed=1), scale=4, folder=tmp_path)
    other = pair_pool(replace(config, pairs_seed=1), scale=4, folder=tmp_path / "other")
    assert not torch.equal(other[1], low)


class Recorder:
    """Keeps what a run's loader was made of."""

    def __init__(self, output):
        self.output = output

    def loader(self, dataset, **options):
        self.dataset, self.transform = dataset, options["transform"]

    def sample(self, index, seed):
        return self.transform(self.dataset[index], torch.Generator().manual_seed(seed))


def test_crops_of_a_pool_cut_both_pictures_at_the_same_place(photos, tmp_path, monkeypatch):
    low = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8).expand(2, 3, 8, 8)
    high = low.repeat_interleave(4, -1).repeat_interleave(4, -2)
    monkeypatch.setattr("papers_shared.diffusion.training.pair_pool", lambda *a, **o: (high, low))
    run = Recorder(tmp_path)
    pair_loader(run, pool_of(photos), scale=4, batch_size=2, workers=0)
    assert len(run.dataset) == 2
    seen = set()
    for seed in range(200):
        pair = run.sample(0, seed)
        assert pair["lq"].shape == (3, 4, 4)
        large = pair["lq"].repeat_interleave(4, -1).repeat_interleave(4, -2)
        assert torch.equal(pair["gt"], large)
        seen.add(tuple(((pair["lq"][0, 0] + 1) * 127.5).round().int().tolist()))
    assert len(seen) == 50  # 5 x 5 places, each mirrored or not
    assert max(max(s) for s in seen) == 39


def test_without_a_pool_a_photo_is_degraded_anew_for_each_sample(photos, tmp_path):
    run = Recorder(tmp_path)
    config = pool_of(photos, pool=0, crop=32)
    pair_loader(run, config, scale=4, batch_size=2, workers=0)
    one, two = (run.sample(1, seed) for seed in (0, 1))
    assert (one["gt"].shape, one["lq"].shape) == ((3, 32, 32), (3, 8, 8))
    assert -1 <= one["gt"].min() < 0 < one["gt"].max() <= 1
    assert not torch.equal(one["lq"], two["lq"])
    assert not list(tmp_path.iterdir())


def test_an_epoch_is_a_hundred_crops_of_a_photo_or_fewer_of_many(photos, tmp_path, monkeypatch):
    run, config = Recorder(tmp_path), pool_of(photos, pool=0, crop=32)
    pair_loader(run, config, scale=4, batch_size=2, workers=0)
    assert len(run.dataset) == 200
    assert torch.equal(run.dataset[3], photos_of([photos], least=32)[1])
    monkeypatch.setattr(pairing, "EPOCH", 1)
    pair_loader(run, config, scale=4, batch_size=2, workers=0)
    assert len(run.dataset) == 2


@pytest.mark.parametrize("degradation", ["testing", "face"])
def test_a_rescaled_crop_shows_the_short_side_and_smaller_photos_serve_too(tmp_path, degradation):
    pytest.importorskip("cv2")
    scale = 1 if degradation == "face" else 4
    (tmp_path / "photos").mkdir()
    ramp = torch.arange(64).expand(3, 64, 64) / 64
    write_image(ramp, tmp_path / "photos" / "ramp.png")
    run = Recorder(tmp_path)
    for crop, change in ((32, 2.0), (96, 1.0)):
        config = pool_of(str(tmp_path / "photos"), crop=crop, degradation=degradation, pool=0)
        pair_loader(run, replace(config, rescale=True), scale=scale, batch_size=2, workers=0)
        gt = run.sample(0, 0)["gt"]
        assert gt.shape == (3, crop, crop)
        steps = (gt[0, 0, 1:9] - gt[0, 0, :8]).abs() * 127.5
        torch.testing.assert_close(steps.mean().item(), change * 255 / 64, rtol=0.1, atol=0)
    pooled = pool_of(str(tmp_path / "photos"), pool_size=96, rescale=True)
    high, _ = pair_pool(pooled, scale=4, folder=tmp_path)
    assert high.shape == (3, 3, 96, 96)
    with pytest.raises(ValueError, match="other settings"):
        pair_pool(replace(pooled, rescale=False), scale=4, folder=tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{}, {"pool": 0, "crop": 32}, {"pool": 0, "crop": 32, "degradation": "face"}],
    ids=["pool", "photos", "faces"],
)
def test_what_workers_are_given_can_be_sent_to_new_processes(photos, tmp_path, changes):
    """Where processes are spawned, not forked: macOS, Windows."""
    run, scale = Recorder(tmp_path), 1 if "degradation" in changes else 4
    pair_loader(run, pool_of(photos, **changes), scale=scale, batch_size=2, workers=4)
    wanted = run.sample(1, 7)
    run.dataset, run.transform = pickle.loads(pickle.dumps((run.dataset, run.transform)))
    assert all(torch.equal(value, wanted[name]) for name, value in run.sample(1, 7).items())


# --------------------------------------------------------------------------- the loop


@pytest.fixture
def start(photos, tmp_path, tmp_path_factory):
    vae = toy.write_autoencoder(tmp_path / "autoencoder.safetensors")

    def run(**changes):
        config = DenoiserConfig(
            **{
                "photos": [photos],
                "crop": 32,
                "rescale": False,
                "degradation": "testing",
                "pool": 3,
                "pool_size": 32,
                "variant": "toy",
                "output": tmp_path / "run",
                "autoencoder": vae,
                "steps": 4,
                "batch_size": 2,
                "warmup": 0,
                "validation": "",
                "workers": 0,
                "log_every": 1,
                **changes,
            }
        )
        scheduler = ResShiftScheduler(num_train_timesteps=4)
        return train_denoiser(config, toy.FAMILY, toy.CONFIG, scheduler)

    return run


def test_a_finished_run_goes_on_for_more_steps_and_ends_as_a_longer_one(start, tmp_path):
    start(steps=4, output=tmp_path / "whole")
    start(steps=2)
    start(steps=4)
    for name in ("model", "model_ema"):
        one, other = (
            load_state_dict(tmp_path / r / f"{name}.safetensors") for r in ("whole", "run")
        )
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    with pytest.raises(ValueError, match=r"total_steps=4 \(now 2\)"):
        start(steps=2)


def test_a_run_whose_rate_falls_to_its_last_step_does_not_go_on(start):
    start(steps=2, lr_schedule="cosine")
    with pytest.raises(ValueError, match=r"steps=2 \(now 4\)"):
        start(steps=4, lr_schedule="cosine")


def test_checkpoints_of_when_steps_were_a_setting_are_gone_on_with(start, tmp_path):
    start(steps=2)
    (facts,) = (tmp_path / "run" / "checkpoints").glob("*/run.json")
    told = json.loads(facts.read_text())
    told["config"]["steps"] = told["config"].pop("total_steps")
    facts.write_text(json.dumps(told))
    start(steps=3)
    assert (tmp_path / "run" / "checkpoints" / "step_00000003").is_dir()


def test_the_weights_of_a_checkpoint_say_what_they_are(start, tmp_path):
    start(steps=2)
    for name in ("model", "ema"):
        path = tmp_path / "run" / "checkpoints" / "step_00000002" / f"{name}.safetensors"
        pipeline = load_pipeline(toy.FAMILY, str(path))
        assert len(pipeline.scheduler) == 4  # not the 15 of the variant that fits its shapes


def pairs_in(folder):
    for kind, side in (("lq", 8), ("gt", 32)):
        (folder / "pairs" / kind).mkdir(parents=True)
        write_image(torch.rand(3, side, side), folder / "pairs" / kind / "a.png")
    return str(folder / "pairs")


def test_validation_comes_after_whole_updates_with_the_averaged_weights(
    start, tmp_path, monkeypatch
):
    """Also where an update takes several passes: once, and not before the first."""
    seen = []

    def psnr(pipeline, data, *, first):
        seen.append((data, first, pipeline.unet))
        return 20.0 + len(seen)

    monkeypatch.setattr(training, "validation_psnr", psnr)
    pairs = pairs_in(tmp_path)
    trained = start(accumulate=2, validation=pairs, validation_first=3, validate_every=2)
    assert [(data, first) for data, first, _ in seen] == [(pairs, 3)] * 2
    assert seen[0][2] is trained.model
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert log.count('"psnr_y": 21.0') == log.count('"psnr_y": 22.0') == 1
    assert log.count('"loss"') == 4


def test_validation_leaves_the_training_as_it_was(start, tmp_path):
    """The scheduler's chain and the generators are put to use between two updates."""
    plain = start(output=tmp_path / "plain")
    watched = start(validation=pairs_in(tmp_path), validate_every=2)
    one, other = plain.model.state_dict(), watched.model.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_what_does_not_fit_is_refused_before_pairs_are_made(start, tmp_path):
    wide = toy.write_autoencoder(tmp_path / "wide.safetensors", channels=4)
    with pytest.raises(ValueError, match="has 4 latent channels, variant toy takes 3"):
        start(autoencoder=wide)
    with pytest.raises(ValueError, match="crop 40 is no multiple of 32"):
        start(crop=40)
    with pytest.raises(ValueError, match="pool_size 32 is smaller than crop 64"):
        start(crop=64)
    assert not (tmp_path / "run" / "pairs.safetensors").exists()


def test_pairs_of_another_scale_are_refused_at_the_start(start, tmp_path):
    pairs = pairs_in(tmp_path)
    check_validation(pairs, scale=4)
    check_validation(pairs, scale=1, first=0)
    with pytest.raises(ValueError, match="a gt of 32x32 and an lq of 8x8, the network's scale"):
        check_validation(pairs, scale=1)
    write_image(torch.rand(3, 32, 36), tmp_path / "pairs" / "gt" / "a.png")
    with pytest.raises(ValueError, match="a gt of 32x36"):
        start(validation=pairs)
    assert not (tmp_path / "run").exists()


def test_validation_is_psnr_of_y_between_8_bit_pictures(tmp_path):
    from papers_shared.diffusion.evaluate import validation_psnr

    for kind, side in (("lq", 8), ("gt", 32)):
        (tmp_path / kind).mkdir()
        for name in ("a", "b"):
            write_image(torch.rand(3, side, side), tmp_path / kind / f"{name}.png")
    large = torch.rand(3, 32, 32)
    pipeline = SimpleNamespace(enlarge=lambda lq, *, seed: large)
    from papers_shared.images import read_image, to_uint8

    truth = [to_uint8(read_image(tmp_path / "gt" / f"{n}.png"))[None] for n in ("a", "b")]
    expected = [PSNR(channels="y")(to_uint8(large)[None], t).item() for t in truth]
    assert validation_psnr(pipeline, tmp_path) == pytest.approx(sum(expected) / 2)
    assert validation_psnr(pipeline, tmp_path, first=1) == pytest.approx(expected[0])
