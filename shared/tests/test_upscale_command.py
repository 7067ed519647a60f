"""From a file of weights to enlarged and measured photos: loading, planning, evaluation."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from papers_shared.checkpoints import save_state_dict
from papers_shared.diffusion import upscale, vq
from papers_shared.diffusion.commands import EvalConfig, UpscaleConfig
from papers_shared.diffusion.evaluate import run_eval
from papers_shared.diffusion.families import load_autoencoder, load_pipeline
from papers_shared.diffusion.upscale import (
    PipelineUpscaler,
    macs_per_second,
    prepared_pipeline,
    run_upscale,
)
from papers_shared.images import read_image, write_image
from papers_shared.inference import OutOfMemory, photos
from papers_shared.inference.listing import photo_seed

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
toy = importlib.import_module("toy_diffusion")


@pytest.fixture
def vae(tmp_path):
    return toy.write_autoencoder(tmp_path / "autoencoder.safetensors")


@pytest.fixture
def weights(tmp_path, vae):
    return toy.write_network(tmp_path / "network.safetensors", autoencoder=vae)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    write_image(torch.rand(3, 9, 12, generator=torch.Generator().manual_seed(0)), path)
    return path


# --------------------------------------------------------------------------- files of weights


def test_a_file_of_weights_brings_network_diffusion_and_autoencoder(tmp_path, vae):
    path = toy.write_network(
        tmp_path / "n.safetensors", autoencoder=vae, timestep_spacing="trailing", scale_factor=4
    )
    pipeline = load_pipeline(toy.FAMILY, path)
    assert isinstance(pipeline, toy.ToyPipeline)
    assert pipeline.unet.architecture == toy.CONFIG
    assert pipeline.default_steps == 1
    assert pipeline.vae.config.scaling_factor == 0.5
    image = torch.rand(3, 4, 4)
    one = toy.pipeline(timestep_spacing="trailing").enlarge(image)
    assert torch.equal(pipeline.enlarge(image), one)
    assert not any(p.requires_grad for p in [*pipeline.unet.parameters()])
    assert not pipeline.unet.training


def test_a_file_in_the_authors_layout_needs_its_autoencoder_named(tmp_path, vae):
    path = tmp_path / "authors.pth"
    torch.save({"state_dict": toy.network().state_dict()}, path)
    with pytest.raises(ValueError, match=r"without its autoencoder.*autoencoder_vq_f4\.pth"):
        load_pipeline(toy.FAMILY, str(path))
    pipeline = load_pipeline(toy.FAMILY, str(path), autoencoder=vae)
    assert len(pipeline.scheduler) == 15  # the variant's


def test_half_precision_weights_load_as_float32(tmp_path, vae, weights):
    path = tmp_path / "half.pth"
    halves = {
        name: value.half() if value.is_floating_point() else value
        for name, value in toy.network().state_dict().items()
    }
    torch.save(halves, path)
    pipeline = load_pipeline(toy.FAMILY, str(path), autoencoder=vae)
    assert pipeline.unet.dtype == torch.float32
    exact = load_pipeline(toy.FAMILY, weights).unet.out[2].weight
    torch.testing.assert_close(pipeline.unet.out[2].weight, exact, atol=1e-3, rtol=1e-3)


def test_what_does_not_fit_is_told(tmp_path, vae):
    with pytest.raises(FileNotFoundError, match="the toy's weights are nowhere"):
        load_pipeline(toy.FAMILY, str(tmp_path / "nothing.pth"))
    state = toy.network().state_dict()
    for name, change, message in (
        ("foreign", {"a.adaLN_scale_msa.weight": torch.zeros(1)}, "that of DiT-SR"),
        ("other", {"a.weight": torch.zeros(1)}, "fits none of toy, wide"),
        ("nan", {"out.2.bias": torch.full((3,), torch.nan)}, r"NaN or infinity \(out\.2\.bias"),
    ):
        path = tmp_path / f"{name}.pth"
        torch.save({**state, **change}, path)
        with pytest.raises(ValueError, match=message):
            load_pipeline(toy.FAMILY, str(path), autoencoder=vae)
    wide = toy.write_autoencoder(tmp_path / "wide.safetensors", channels=5)
    path = toy.write_network(tmp_path / "n.safetensors", autoencoder=wide)
    with pytest.raises(ValueError, match="has 5 latent channels, the network takes 3"):
        load_pipeline(toy.FAMILY, path)


# --------------------------------------------------------------------------- autoencoders


def test_the_codebook_tells_which_released_autoencoder_it_is(tmp_path, monkeypatch):
    small = {
        "embed_dim": 3,
        "n_embed": 16,
        "ddconfig": {**vq.F4["ddconfig"], "ch": 32, "num_res_blocks": 1},
    }
    monkeypatch.setattr(vq, "F4", small)
    torch.save({"state_dict": vq.to_official(vq.build(small))}, tmp_path / "vq.pth")
    model = load_autoencoder(str(tmp_path / "vq.pth"))
    assert isinstance(model, vq.VQAutoencoder)
    assert not any(p.requires_grad for p in model.parameters())
    torch.save({"quantize.embedding.weight": torch.zeros(5, 7)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"codebook \(5, 7\): neither f4 nor the faces' f8"):
        load_autoencoder(str(tmp_path / "other.pth"))


def test_what_is_no_autoencoder_is_refused(tmp_path, weights):
    with pytest.raises(ValueError, match="holds no autoencoder that is known here"):
        load_autoencoder(weights)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nothing\.pth"):
        load_autoencoder(str(tmp_path / "nothing.pth"))


# --------------------------------------------------------------------------- device, precision


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_pipeline_is_prepared_in_the_precision_asked_for(weights, photo, precision):
    config = UpscaleConfig(photos=[photo], weights=weights, precision=precision, device="cpu")
    pipeline = prepared_pipeline(config, toy.FAMILY)
    assert pipeline.unet.dtype == pipeline.vae.dtype == getattr(torch, precision)
    assert PipelineUpscaler(pipeline, tile=8).estimate(9, 12).seconds > 0


def test_a_device_that_cannot_serve_is_refused(weights, photo, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for options, message in (
        ({"device": "cuda"}, "no CUDA device is visible"),
        ({"precision": "float16"}, "use --precision bfloat16 or float32"),
    ):
        config = UpscaleConfig(photos=[photo], weights=weights, **options)
        with pytest.raises(ValueError, match=message):
            prepared_pipeline(config, toy.FAMILY)


# --------------------------------------------------------------------------- planning


@pytest.fixture(scope="module")
def pipeline():
    return toy.pipeline()


def test_larger_photos_and_more_steps_are_estimated_to_take_longer(pipeline):
    upscaler = PipelineUpscaler(pipeline, tile=16)
    sizes = [(8, 8), (16, 16), (40, 16), (40, 100), (1000, 1000)]
    estimates = [upscaler.estimate(*size) for size in sizes]
    seconds = [e.seconds for e in estimates]
    assert seconds == sorted(seconds)
    assert len(set(seconds)) == len(sizes)
    assert [e.bytes for e in estimates[1:]] == [upscaler.bytes_of_tile(16)] * 4
    one = PipelineUpscaler(pipeline, tile=16, steps=2).estimate(16, 16).seconds
    assert one < estimates[1].seconds


def test_a_panorama_of_20_000_pixels_takes_the_memory_of_a_tile(pipeline):
    upscaler = PipelineUpscaler(pipeline, tile=64)
    panorama = upscaler.estimate(2_000, 20_000)
    assert panorama.tiles == 42 * 417
    assert panorama.bytes == upscaler.bytes_of_tile(64)
    assert panorama.seconds > 1000 * upscaler.estimate(64, 64).seconds


def test_a_panorama_whose_result_has_no_place_is_refused_before_the_network_runs(
    tmp_path, weights, monkeypatch
):
    write_image(torch.zeros(1, 30, 20_000), tmp_path / "panorama.png")
    monkeypatch.setattr(photos, "available_memory", lambda device: 500_000_000)
    monkeypatch.setattr(toy.ToyPipeline, "enlarge", None)
    config = UpscaleConfig(photos=[tmp_path / "panorama.png"], weights=weights, device="cpu")
    with pytest.raises(ValueError, match=r"80000 x 120 pixels needs 0\.81 GB.*--max-pixels"):
        run_upscale(config, toy.FAMILY)


@pytest.mark.parametrize(("height", "width"), [(5, 8), (30, 9), (40, 41)])
def test_as_many_tiles_are_computed_as_estimated(pipeline, height, width):
    upscaler, calls = PipelineUpscaler(pipeline, steps=2, tile=16, overlap=4), []
    out = upscaler(torch.rand(3, height, width), seed=0, progress=lambda *n: calls.append(n))
    assert out.shape == (3, 4 * height, 4 * width)
    assert calls[-1] == (2 * upscaler.estimate(height, width).tiles,) * 2  # steps of all tiles


def test_tiles_are_as_large_as_memory_allows(pipeline, monkeypatch):
    monkeypatch.setattr(upscale, "available_memory", lambda device: 10**12)
    whole = PipelineUpscaler(pipeline)
    assert whole.tile == upscale.LARGEST_TILE
    free = int(whole.bytes_of_tile(40) / 0.7) + 1
    monkeypatch.setattr(upscale, "available_memory", lambda device: free)
    assert PipelineUpscaler(pipeline).tile == 40
    assert PipelineUpscaler(pipeline, batch_size=4).tile < 40
    monkeypatch.setattr(upscale, "available_memory", lambda device: 1000)
    with pytest.raises(OutOfMemory, match="the smallest tile, 8 px, needs"):
        PipelineUpscaler(pipeline)


def test_an_autoencoder_with_global_attention_gets_small_tiles_on_a_cpu(monkeypatch):
    monkeypatch.setattr(upscale, "available_memory", lambda device: 10**12)
    attends = toy.pipeline()
    with torch.random.fork_rng():
        attends.vae = vq.VQAutoencoder(block_out_channels=(32,) * 3, num_vq_embeddings=16)
    assert PipelineUpscaler(attends).tile == upscale.CPU_TILE_WITH_ATTENTION


def test_tiles_are_rounded_up_to_what_the_network_takes(pipeline):
    assert [PipelineUpscaler(pipeline, tile=n).tile for n in (1, 8, 9, 100)] == [8, 8, 16, 104]
    assert [PipelineUpscaler(pipeline, tile=n).overlap for n in (8, 100)] == [4, 16]


def test_half_the_precision_is_half_the_memory(pipeline):
    half = toy.pipeline().to(torch.bfloat16)
    sizes = [PipelineUpscaler(p, tile=8).bytes_of_tile(64) for p in (pipeline, half)]
    assert sizes[0] == 2 * sizes[1]


def test_the_speed_of_this_machine_is_measured_once():
    assert macs_per_second("cpu") > 1e6
    assert macs_per_second("cpu") is macs_per_second("cpu")


# --------------------------------------------------------------------------- commands


def test_upscale_writes_what_the_pipeline_makes(photo, weights, tmp_path):
    config = UpscaleConfig(
        photos=[photo], output=tmp_path / "large.png", weights=weights, seed=3, device="cpu"
    )
    assert run_upscale(config, toy.FAMILY) == 0
    pipeline = load_pipeline(toy.FAMILY, weights)
    large = pipeline.enlarge(read_image(photo), seed=photo_seed(3, "photo"))
    torch.testing.assert_close(read_image(config.output), large, atol=0.51 / 255, rtol=0)


def test_steps_are_checked_before_a_photo_is_read(tmp_path, weights):
    photo = tmp_path / "missing.png"
    for steps in (0, 5):
        config = UpscaleConfig(photos=[photo], weights=weights, steps=steps, device="cpu")
        with pytest.raises(ValueError, match="from 1 to 4"):
            run_upscale(config, toy.FAMILY)


@pytest.fixture
def pairs(tmp_path):
    for kind, side in (("lq", 6), ("gt", 24)):
        (tmp_path / "pairs" / kind).mkdir(parents=True)
        for i, name in enumerate("abc"):
            image = torch.rand(3, side, side, generator=torch.Generator().manual_seed(i))
            write_image(image, tmp_path / "pairs" / kind / f"{name}.png")
    return tmp_path / "pairs"


def test_evaluation_measures_what_the_pipeline_makes_of_the_first_pairs(pairs, weights, tmp_path):
    config = EvalConfig(
        weights=weights,
        data=str(pairs),
        metrics=["psnr"],
        output=tmp_path / "scores",
        first=2,
        tile=8,
        device="cpu",
    )
    assert run_eval(config, toy.FAMILY) == 0
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert sorted(scores["images"]) == ["a", "b"]
    pipeline = load_pipeline(toy.FAMILY, weights)
    lq = read_image(pairs / "lq" / "b.png")
    large = (pipeline.enlarge(lq, seed=photo_seed(0, "b")) * 255).round() / 255
    luma = torch.tensor([65.481, 128.553, 24.966])[:, None, None]
    difference = ((large - read_image(pairs / "gt" / "b.png")) * luma).sum(0)
    expected = 20 * torch.log10(255 / difference.square().mean().sqrt())
    assert scores["images"]["b"]["psnr"] == pytest.approx(expected.item(), abs=0.01)


def test_results_are_never_mixed_up_with_data_or_older_results(pairs, weights, tmp_path):
    config = {"weights": weights, "data": str(pairs), "metrics": ["psnr"], "device": "cpu"}
    old = tmp_path / "old"
    old.mkdir()
    write_image(torch.zeros(3, 4, 4), old / "z.png")
    for output, message in ((pairs / "gt", "holds the data"), (old, "is none of the pictures")):
        with pytest.raises(ValueError, match=message):
            run_eval(EvalConfig(**config, output=output), toy.FAMILY)


def test_metrics_that_need_references_are_refused_where_there_are_none(pairs, weights):
    config = EvalConfig(weights=weights, data=str(pairs / "lq"), metrics=["psnr"], device="cpu")
    with pytest.raises(ValueError, match="psnr compares with references"):
        run_eval(config, toy.FAMILY)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run_eval(EvalConfig(weights=weights, data="nowhere", device="cpu"), toy.FAMILY)


def test_weights_with_nan_in_the_autoencoder_are_told(photo, weights, vae):
    broken = toy.autoencoder()
    broken.decoder.layers[0].bias.data.fill_(torch.nan)
    metadata = {"width": "8", "latent_channels": "3", "scaling_factor": "0.5"}
    save_state_dict(broken.state_dict(), vae, metadata=metadata)
    config = UpscaleConfig(photos=[photo], weights=weights, device="cpu")
    with pytest.raises(ValueError, match=r"photo\.png: the network returned NaN"):
        run_upscale(config, toy.FAMILY)
