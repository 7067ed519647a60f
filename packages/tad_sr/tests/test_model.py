"""The generator's sizes, its features, and the pipeline around it."""

from __future__ import annotations

import pytest
import torch

from papers_shared.complexity import count_parameters
from tad_sr import VARIANTS, build


@pytest.mark.parametrize(
    ("variant", "parameters", "entries"),
    [("realsr", 118_593_583, 564), ("faceir", 118_931_604, 576)],
)
def test_full_size_has_119_million_parameters(variant: str, parameters: int, entries: int) -> None:
    with torch.device("meta"):
        model = build(VARIANTS[variant])
    assert count_parameters(model) == parameters
    assert len(model.state_dict()) == entries


def test_features_are_those_of_four_resolutions() -> None:
    with torch.device("meta"):
        model = build(VARIANTS["realsr"])
        latent = torch.empty(1, 3, 64, 64)
        maps = model.features(latent, torch.zeros(1), latent)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (160, 32, 32), (320, 16, 16), (320, 8, 8), (640, 8, 8), (640, 8, 8),
    ]  # fmt: skip


@pytest.fixture
def pipeline(tiny, scheduler):
    from papers_shared.diffusion.train_autoencoder import build as build_autoencoder
    from tad_sr.pipeline import TADSRPipeline, UNetModelSwinModel

    torch.manual_seed(0)
    unet = UNetModelSwinModel(**tiny.to_dict()).eval()
    for parameter in unet.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    vae = build_autoencoder(width=8, latent_channels=tiny.in_channels).eval()
    pipeline = TADSRPipeline(unet=unet, vae=vae, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_one_evaluation_makes_a_picture(pipeline) -> None:
    calls = []
    pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    image = pipeline(torch.rand(3, 20, 13), tile=32, output_type="pt").images
    assert image.shape == (1, 3, 80, 52)
    assert 0 <= image.min() <= image.max() <= 1
    assert len(calls) == 1


def test_one_step_is_the_students_training_step(pipeline, batch) -> None:
    from papers_shared.diffusion.latents import encode, enlarge
    from tad_sr import losses

    noise = batch.draws.noise[:, :, :8, :8]
    pipeline.scheduler.set_timesteps(1)
    with torch.no_grad():
        z_y = encode(pipeline.vae, enlarge(batch.lq, 4))
        sampled = pipeline.sample(batch.lq, noise=lambda _: noise)
        z_T = losses.start(pipeline.scheduler, z_y, noise)
        trained = losses.student_output(
            pipeline.unet, pipeline.scheduler, z_T=z_T, z_y=z_y, lq=batch.lq, t=14
        )
    assert torch.allclose(sampled, trained, atol=1e-5)


def test_a_saved_pipeline_comes_back(pipeline, tmp_path) -> None:
    from tad_sr import TADSRPipeline

    pipeline.save_pretrained(tmp_path)
    again = TADSRPipeline.from_pretrained(tmp_path)
    photo = torch.rand(3, 8, 8)
    ours, theirs = (p(photo, output_type="pt", tile=8, overlap=0).images for p in (pipeline, again))
    assert torch.equal(ours, theirs)
    assert again.unet.architecture == pipeline.unet.architecture
    assert len(again.scheduler) == 15
    assert torch.equal(again.scheduler.sqrt_etas, pipeline.scheduler.sqrt_etas)
    assert again.default_steps == 1


def test_the_teachers_chain_runs_in_the_same_pipeline(pipeline) -> None:
    calls = []
    pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    pipeline(torch.rand(3, 8, 8), 15, tile=8, overlap=0)
    assert len(calls) == 15
