import random

import numpy as np
import pytest
import torch

from papers_shared._basicsr import basicsr_module
from papers_shared.data import degradations

try:
    basicsr_module("data.degradations")
except ImportError as reason:
    pytest.skip(str(reason), allow_module_level=True)


@pytest.fixture
def image():
    return torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gaussian", {"sig_x": 2.0, "sig_y": 1.0, "theta": 0.3, "isotropic": False}),
        ("generalized_gaussian", {"sig_x": 2.0, "sig_y": 2.0, "theta": 0.0, "beta": 0.8}),
        ("plateau", {"sig_x": 2.0, "sig_y": 2.0, "theta": 0.0, "beta": 1.5}),
        ("sinc", {"cutoff": 1.1}),
    ],
)
def test_kernels_add_up_to_one_and_are_point_symmetric(name, parameters):
    kernel = degradations.blur_kernel(name, kernel_size=13, **parameters)
    assert kernel.shape == (13, 13)
    assert kernel.sum().item() == pytest.approx(1)
    torch.testing.assert_close(kernel, kernel.flip(0, 1))


def test_kernels_with_wrong_names_or_sizes_are_refused():
    with pytest.raises(ValueError, match="unknown blur kernel"):
        degradations.blur_kernel("box", kernel_size=3)
    with pytest.raises(ValueError, match="odd"):
        degradations.blur_kernel("sinc", kernel_size=4, cutoff=1.0)
    with pytest.raises(ValueError, match="sigma"):
        degradations.blur_kernel("sinc", kernel_size=5, sigma=1.0)
    with pytest.raises(ValueError, match="kernel kinds"):
        degradations.random_blur_kernel({"skew": 1.0}, kernel_size=5)


def test_a_seed_repeats_the_draw_and_leaves_the_global_generators_alone(image):
    random.seed(7)
    np.random.seed(7)
    expected = random.random(), np.random.rand()
    random.seed(7)
    np.random.seed(7)
    calls = [
        lambda s: degradations.random_blur_kernel({"iso": 1, "aniso": 1}, kernel_size=9, seed=s),
        lambda s: degradations.random_gaussian_noise(image, sigma_range=(1, 30), seed=s),
        lambda s: degradations.random_poisson_noise(image, scale_range=(0.1, 2), seed=s),
    ]
    for call in calls:
        assert torch.equal(call(3), call(3))
        assert not torch.equal(call(3), call(4))
    assert (random.random(), np.random.rand()) == expected


def test_gaussian_noise_has_its_deviation():
    flat = torch.full((3, 200, 200), 0.5)
    noisy = degradations.random_gaussian_noise(flat, sigma_range=(10, 10), seed=0)
    assert (noisy - flat).std().item() * 255 == pytest.approx(10, rel=0.02)
    grey = degradations.random_gaussian_noise(
        flat, sigma_range=(10, 10), grey_probability=1, seed=0
    )
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])


def test_jpeg_is_coarser_at_lower_quality(image):
    errors = [(degradations.jpeg(image, q) - image).abs().mean() for q in (10, 50, 95)]
    assert errors[0] > errors[1] > errors[2]
    levels = degradations.jpeg(image, 50) * 255
    torch.testing.assert_close(levels, levels.round())


def test_channels_keep_their_places():
    red = torch.zeros(3, 16, 16)
    red[0] = 1
    assert (degradations.jpeg(red, 95)[0] > 0.9).all()
    assert (degradations.jpeg(red, 95)[1:] < 0.1).all()


@pytest.mark.parametrize("quality", [0, 101, 75.5])
def test_jpeg_takes_whole_qualities_only(image, quality):
    with pytest.raises(ValueError, match="whole number from 1 to 100"):
        degradations.jpeg(image, quality)


@pytest.mark.parametrize("seed", range(8))
def test_crops_of_a_pair_show_the_same_place(seed):
    low = torch.arange(12 * 10, dtype=torch.float32).reshape(1, 12, 10).expand(3, -1, -1)
    high = low.repeat_interleave(4, -1).repeat_interleave(4, -2)
    big, small = degradations.paired_random_crop(high, low, patch=16, scale=4, seed=seed)
    assert big.shape == (3, 16, 16)
    assert torch.equal(big[:, ::4, ::4], small)


def test_crops_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="does not fit"):
        degradations.paired_random_crop(
            torch.zeros(3, 40, 40), torch.zeros(3, 10, 11), patch=8, scale=4
        )


def test_batches_and_integers_are_refused(image):
    for wrong in (image[None], image.byte(), image[:1]):
        with pytest.raises(ValueError, match="RGB image"):
            degradations.jpeg(wrong, 50)
