"""Pictures to latents and back; noise that depends on the place, not on the tiles."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from papers_shared.diffusion.latents import NoiseField, decode, encode, enlarge, latent_factor
from papers_shared.diffusion.vq import VQAutoencoder

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
toy = importlib.import_module("toy_diffusion")


@torch.no_grad()
def test_latents_are_scaled_by_the_autoencoders_factor():
    vae, image = toy.autoencoder(), torch.rand(2, 3, 16, 24) * 2 - 1
    assert latent_factor(vae) == 4
    z = encode(vae, image)
    assert z.shape == (2, 3, 4, 6)
    torch.testing.assert_close(z, vae.encode(image).latents * 0.5)
    torch.testing.assert_close(decode(vae, z), vae.decode(z / 0.5).sample)
    assert decode(vae, z).shape == image.shape


@torch.no_grad()
def test_latents_are_computed_in_the_autoencoders_dtype():
    vae = toy.autoencoder().bfloat16()
    z = encode(vae, torch.zeros(1, 3, 8, 8))
    assert z.dtype == torch.bfloat16
    assert decode(vae, z.float()).dtype == torch.bfloat16


def test_three_levels_are_a_quarter_of_the_side_and_four_an_eighth():
    with torch.device("meta"):
        four = VQAutoencoder(block_out_channels=(32, 32, 32), level_blocks=(1, 1, 1))
        eight = VQAutoencoder(block_out_channels=(32,) * 4, level_blocks=(1,) * 4)
    assert (latent_factor(four), latent_factor(eight)) == (4, 8)


def test_enlarging_is_bicubic_without_antialiasing_and_once_is_nothing():
    lq = torch.rand(1, 3, 5, 7)
    large = enlarge(lq, 4)
    expected = torch.nn.functional.interpolate(
        lq, size=(20, 28), mode="bicubic", align_corners=False, antialias=False
    )
    torch.testing.assert_close(large, expected)
    assert enlarge(lq, 1) is lq


# --------------------------------------------------------------------------- noise


def test_noise_is_the_same_through_whatever_window_it_is_seen():
    field = NoiseField(3, channels=2, block=8)
    whole = field.window(5, 0, 0, 40, 30)
    assert whole.shape == (2, 40, 30)
    for top, left, height, width in [(0, 0, 8, 8), (7, 7, 2, 2), (3, 11, 21, 17), (39, 29, 1, 1)]:
        part = field.window(5, top, left, height, width)
        assert torch.equal(part, whole[:, top : top + height, left : left + width])
    stacked = field.windows(5, [(0, 0), (3, 11)], 9, 10)
    assert torch.equal(stacked[1], whole[:, 3:12, 11:21])


def test_noise_is_standard_normal():
    noise = NoiseField(0, channels=3).window(0, 0, 0, 200, 200)
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    assert (noise.abs() < 1).float().mean().item() == pytest.approx(0.6827, abs=0.01)


def test_seeds_steps_and_blocks_give_unrelated_noise():
    size = (8, 8, 8)
    views = [
        NoiseField(0, channels=1, block=8).window(0, 0, 0, *size[1:]),
        NoiseField(1, channels=1, block=8).window(0, 0, 0, *size[1:]),
        NoiseField(0, channels=1, block=8).window(1, 0, 0, *size[1:]),
        NoiseField(0, channels=1, block=8).window(-1, 0, 0, *size[1:]),  # the chain's start
        NoiseField(0, channels=1, block=8).window(0, 8, 0, *size[1:]),
        NoiseField(0, channels=1, block=8).window(0, 0, 8, *size[1:]),
    ]
    correlations = torch.corrcoef(torch.stack([v.flatten() for v in views]))
    assert (correlations - torch.eye(6)).abs().max() < 0.45  # 64 samples: 0.125 is one sigma


def test_noise_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    NoiseField(0, channels=1).window(0, 0, 0, 4, 4)
    assert torch.equal(torch.get_rng_state(), before)
