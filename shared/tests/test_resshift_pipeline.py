"""Pictures of any size through a ResShift-like pipeline: seeds, tiles, batches, files, errors."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import configuration_utils
from PIL import Image

from papers_shared.diffusion import vq
from papers_shared.diffusion.latents import NoiseField, enlarge
from papers_shared.diffusion.pipeline import PRIOR
from papers_shared.diffusion.scheduler import ResShiftScheduler

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
toy = importlib.import_module("toy_diffusion")


@pytest.fixture(scope="module")
def pipeline():
    return toy.pipeline()


def photo(height=12, width=20, seed=0):
    """Smooth, in [0, 1]."""
    small = torch.rand(1, 3, 3, 4, generator=torch.Generator().manual_seed(seed))
    large = torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear")
    return large[0]


# --------------------------------------------------------------------------- sizes and kinds


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 300), (8, 8), (17, 5), (33, 31)])
def test_any_size_is_enlarged_four_times(pipeline, size):
    large = pipeline.enlarge(photo(*size), 2, tile=64)
    assert large.shape == (3, 4 * size[0], 4 * size[1])
    assert large.dtype == torch.float32
    assert 0 <= large.min() < large.max() <= 1


def test_pil_pictures_and_tensors_give_the_same(pipeline):
    pixels = (photo() * 255).round()
    picture = Image.fromarray(pixels.permute(1, 2, 0).to(torch.uint8).numpy())
    (from_pil,) = pipeline(picture).images
    assert from_pil.size == (80, 48)
    from_tensor = pipeline(pixels / 255, output_type="pt").images
    assert from_tensor.shape == (1, 3, 48, 80)
    shown = torch.from_numpy(np.array(from_pil)).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(from_tensor[0], shown, atol=0.5001 / 255, rtol=0)


def test_grey_and_transparent_pil_pictures_become_rgb(pipeline):
    for mode in ("L", "RGBA", "P"):
        (large,) = pipeline(Image.new(mode, (5, 3)), 2, return_dict=False)[0]
        assert (large.mode, large.size) == ("RGB", (20, 12))


def test_pictures_of_a_batch_are_enlarged_apart(pipeline):
    """The first is what it is alone; equal pictures differ in their noise."""
    both = pipeline(torch.stack([photo()] * 2), output_type="pt").images
    alone = pipeline(photo(), output_type="pt").images
    assert torch.equal(both[0], alone[0])
    assert not torch.equal(both[0], both[1])
    sizes = [x.size for x in pipeline([Image.new("RGB", s) for s in ((3, 4), (9, 2))], 2).images]
    assert sizes == [(12, 16), (36, 8)]


# --------------------------------------------------------------------------- noise and tiles


def test_the_same_seed_gives_the_same_picture_and_another_another(pipeline):
    torch.manual_seed(1)
    first = pipeline.enlarge(photo(), seed=5)
    torch.manual_seed(2)
    assert torch.equal(pipeline.enlarge(photo(), seed=5), first)
    assert not torch.equal(pipeline.enlarge(photo(), seed=6), first)


def test_overlapping_tiles_get_the_same_noise_where_they_overlap(pipeline, monkeypatch):
    seen = {}
    window = NoiseField.window

    def watched(self, step, top, left, height, width):
        noise = window(self, step, top, left, height, width)
        plane = seen.setdefault(step, torch.full((3, 64, 64), torch.nan))
        place = plane[:, top : top + height, left : left + width]
        known = ~place.isnan()
        assert torch.equal(place[known], noise[known])
        seen.setdefault(f"shared {step}", []).append(int(known.sum()))
        place.copy_(noise)
        return noise

    monkeypatch.setattr(NoiseField, "window", watched)
    pipeline.enlarge(photo(21, 30), tile=16, overlap=6)
    assert {step for step in seen if isinstance(step, int)} == {PRIOR, 1, 2, 3}  # the last: none
    assert all(sum(v) > 0 for k, v in seen.items() if isinstance(k, str))


def test_the_size_of_tiles_changes_little(pipeline):
    whole, tiled = (pipeline.enlarge(photo(40, 40), tile=t, overlap=12) for t in (40, 32))
    other = pipeline.enlarge(photo(40, 40), tile=40, seed=1)
    assert not torch.equal(whole, tiled)
    difference, by_noise = ((x - whole).square().mean().sqrt() for x in (tiled, other))
    assert difference < 0.5 * by_noise


def test_tiles_of_a_batch_are_those_one_by_one(pipeline):
    one, four = (pipeline.enlarge(photo(20, 30), tile=16, batch_size=n) for n in (1, 4))
    torch.testing.assert_close(one, four, atol=1e-5, rtol=0)


def test_a_tile_is_rounded_up_and_the_overlap_is_half_of_it_at_most(pipeline):
    calls = []
    pipeline.enlarge(photo(8, 24), 2, tile=3, overlap=100, progress=lambda *n: calls.append(n))
    # Five tiles of 8 every 4 pixels, two steps each; a tile's end is told after its last step.
    assert [done for done, _ in calls] == [1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 8, 8, 9, 10, 10]
    assert {total for _, total in calls} == {10}


def test_an_uneven_picture_is_padded_and_cut_to_size(pipeline):
    """Right and bottom, by reflection, as the authors do."""
    odd = photo(5, 8)
    padded = torch.nn.functional.pad(odd[None], (0, 0, 0, 3), mode="reflect")[0]
    assert torch.equal(pipeline.enlarge(odd), pipeline.enlarge(padded)[:, :20])


# --------------------------------------------------------------------------- the chain


@torch.no_grad()
def test_sampling_is_the_chain_of_the_sheet(pipeline):
    """Prior, predictions, posterior draws; written out in the words of section 4.1."""
    lq = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noises = {s: torch.randn(1, 3, 8, 8) for s in (PRIOR, 3, 2, 1)}
    pipeline.scheduler.set_timesteps(4)
    result = pipeline.sample(lq, noise=noises.__getitem__)
    z_y = 0.5 * pipeline.vae.encode(enlarge(lq, 4)).latents
    etas = pipeline.scheduler.training_tables.etas.float()
    z = z_y + 2 * etas[3].sqrt() * noises[PRIOR]
    for t in (3, 2, 1, 0):
        z0 = pipeline.unet(z / (4 * etas[t] + 1).sqrt(), torch.tensor([t]), lq)
        if t:
            share = etas[t - 1] / etas[t]
            variance = 4 * share * (etas[t] - etas[t - 1])
            z = share * z + (1 - share) * z0 + variance.sqrt() * noises[t]
    torch.testing.assert_close(result, z0, atol=1e-5, rtol=1e-5)


def test_one_step_is_the_default_where_the_chain_begins_at_its_end():
    student, teacher = toy.pipeline(timestep_spacing="trailing"), toy.pipeline()
    assert (student.default_steps, teacher.default_steps) == (1, 4)
    student.enlarge(photo())
    assert student.scheduler.timesteps.tolist() == [3]
    student.enlarge(photo(), 4)
    assert student.scheduler.timesteps.tolist() == [3, 2, 1, 0]


@torch.no_grad()
def test_the_deterministic_chain_draws_only_its_start():
    asked = []

    def noise(step):
        asked.append(step)
        return torch.zeros(1, 3, 8, 8)

    chain = toy.pipeline(algorithm_type="ddim")
    chain.scheduler.set_timesteps(4)
    chain.sample(torch.zeros(1, 3, 8, 8), noise=noise)
    assert asked == [PRIOR]


def test_faces_are_restored_at_their_own_size():
    """An f4 autoencoder and no enlargement: a latent pixel is four pixels of the photo."""
    config = replace(toy.CONFIG, lq_size=32)
    face = toy.ToyPipeline(
        unet=toy.network(config),
        vae=toy.autoencoder(),
        scheduler=ResShiftScheduler(num_train_timesteps=4, scale_factor=1),
    )
    assert (face.scale, face.pixels_per_latent, face.multiple) == (1, 4, 32)
    assert face.enlarge(photo(40, 33), 2, tile=32).shape == (3, 40, 33)


def test_half_precision_stays_near(pipeline):
    exact = pipeline.enlarge(photo())
    half = toy.pipeline().to(torch.bfloat16).enlarge(photo())
    assert half.dtype == torch.float32
    assert (half - exact).abs().mean() < 0.03


# --------------------------------------------------------------------------- files


def test_a_pipeline_survives_saving(pipeline, tmp_path, monkeypatch):
    pipeline.save_pretrained(tmp_path)
    told = []
    monkeypatch.setattr(configuration_utils.logger, "warning", lambda text, *_: told.append(text))
    again = toy.ToyPipeline.from_pretrained(tmp_path)
    assert told == []
    assert torch.equal(again.enlarge(photo()), pipeline.enlarge(photo()))
    assert len(again.scheduler) == 4


def test_a_pipeline_with_a_vq_autoencoder_survives_saving(tmp_path):
    with torch.random.fork_rng():
        vae = vq.VQAutoencoder(
            block_out_channels=(32,) * 3, level_blocks=(1, 2, 1), num_vq_embeddings=16
        )
    whole = toy.ToyPipeline(
        unet=toy.network(), vae=vae.eval(), scheduler=ResShiftScheduler(num_train_timesteps=4)
    )
    whole.save_pretrained(tmp_path)
    again = toy.ToyPipeline.from_pretrained(tmp_path)
    assert isinstance(again.vae, vq.VQAutoencoder)
    assert torch.equal(again.enlarge(photo(), 2), whole.enlarge(photo(), 2))


def test_a_network_says_what_it_was_built_from(tmp_path):
    model = toy.network()
    assert model.config.swin_embed_dim == 16
    model.save_pretrained(tmp_path)
    again = toy.UNetModelSwinModel.from_pretrained(tmp_path)
    assert again.architecture == toy.CONFIG
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    with pytest.raises(ValueError, match="unknown network option 'width'"):
        toy.UNetModelSwinModel(width=3)


# --------------------------------------------------------------------------- errors


def test_nan_weights_are_told_from_nan_pictures():
    broken = toy.pipeline()
    next(iter(broken.unet.parameters())).data.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or infinity for the tile at row 0, column 0"):
        broken.enlarge(photo())


@pytest.mark.parametrize("steps", [0, 5, -1])
def test_steps_out_of_range_are_refused(pipeline, steps):
    with pytest.raises(ValueError, match=f"from 1 to 4.*got {steps}"):
        pipeline(photo(), steps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 0}, "got tile 0"),
        ({"overlap": -1}, "overlap -1"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"output_type": "np"}, "'np' is neither pil nor pt"),
    ],
)
def test_options_without_meaning_are_refused(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline(photo(), 2, **options)


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 8, 8),
        torch.zeros(2, 2, 3, 8, 8),
        [torch.zeros(3, 8, 8)],
        [],
        "photo.png",
    ],
    ids=["integers", "grey", "five axes", "list of tensors", "nothing", "path"],
)
def test_what_is_no_picture_is_refused(pipeline, image):
    with pytest.raises(ValueError, match=r"expected .*\(3, H, W\)"):
        pipeline(image, 2)


def test_pictures_of_several_sizes_make_no_tensor(pipeline):
    pictures = [Image.new("RGB", size) for size in ((3, 4), (9, 2))]
    with pytest.raises(ValueError, match="output_type='pil'"):
        pipeline(pictures, 2, output_type="pt")


def test_an_autoencoder_that_cannot_serve_the_enlargement_is_refused():
    with pytest.raises(ValueError, match="f4 autoencoder cannot serve enlargement by 3"):
        toy.pipeline(scale_factor=3).enlarge(photo())
