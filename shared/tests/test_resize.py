import pytest
import torch

from papers_shared._basicsr import basicsr_module
from papers_shared.data.resize import imresize


def test_constant_images_stay_constant():
    x = torch.full((2, 3, 19, 23), 0.37)
    for scale in (0.1, 0.25, 0.7, 1.0, 1.5, 3.0):
        out = imresize(x, scale)
        torch.testing.assert_close(out, torch.full_like(out, 0.37), rtol=0, atol=1e-6)


def test_sides_are_rounded_up():
    assert imresize(torch.rand(1, 101, 75), 0.25).shape == (1, 26, 19)
    assert imresize(torch.rand(1, 101, 75), size=(7, 200)).shape == (1, 7, 200)


def test_size_alone_equals_the_scale_that_gives_it():
    x = torch.rand(3, 40, 24)
    torch.testing.assert_close(imresize(x, size=(10, 6)), imresize(x, 0.25))


def test_scale_one_is_the_identity():
    x = torch.rand(2, 3, 9, 11)
    torch.testing.assert_close(imresize(x, 1), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(5, 8), (7, 30), (40, 60), (33, 31)])
def test_mirroring_and_transposing_commute_with_resizing(size):
    x = torch.rand(3, 20, 30, dtype=torch.float64)
    out = imresize(x, size=size)
    torch.testing.assert_close(imresize(x.flip(-1), size=size), out.flip(-1))
    torch.testing.assert_close(imresize(x.mT, size=size[::-1]), out.mT)


@pytest.mark.parametrize("scale", [0.25, 3])
def test_a_batch_equals_its_images_one_by_one(scale):
    x = torch.rand(2, 4, 3, 15, 17)
    one_by_one = torch.stack([torch.stack([imresize(i, scale) for i in row]) for row in x])
    torch.testing.assert_close(imresize(x, scale), one_by_one)


def test_shrinking_a_ramp_keeps_it_a_ramp_inside():
    ramp = torch.arange(64, dtype=torch.float64).expand(1, 8, 64)
    steps = imresize(ramp, 0.25)[0, 0, 2:-2].diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 4.0))


def test_inside_it_is_torch_s_antialiased_bicubic():
    x = torch.rand(1, 3, 64, 48)
    theirs = torch.nn.functional.interpolate(x, scale_factor=0.25, mode="bicubic", antialias=True)
    ours = imresize(x, 0.25)
    torch.testing.assert_close(ours[..., 2:-2, 2:-2], theirs[..., 2:-2, 2:-2], rtol=0, atol=1e-6)
    assert (ours - theirs).abs().max() > 1e-3  # at the border it mirrors, torch cuts off


@pytest.mark.parametrize("scale", [0.4, 2.5])
@pytest.mark.parametrize("antialias", [True, False])
def test_gradients_are_right(scale, antialias):
    x = torch.rand(1, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: imresize(t, scale, antialias=antialias), x)


def test_an_image_smaller_than_the_kernel_is_mirrored_more_than_once():
    x = torch.rand(1, 3, 2, dtype=torch.float64)
    tiled = torch.cat([x, x.flip(-1)], -1).repeat(1, 1, 9)
    tiled = torch.cat([tiled, tiled.flip(-2)], -2).repeat(1, 9, 1)
    # A period of the mirrored plane that starts at a multiple of the image, far from its border.
    inside = imresize(tiled, 0.5)[:, 12:14, 8:9]
    torch.testing.assert_close(imresize(x, 0.5)[:, :1], inside[:, :1])


def test_half_precision_is_computed_in_float32():
    x = torch.rand(3, 32, 32).bfloat16()
    torch.testing.assert_close(imresize(x, 0.5), imresize(x.float(), 0.5).bfloat16())


@pytest.mark.parametrize(
    ("image", "arguments", "message"),
    [
        (torch.zeros(3, 8, 8, dtype=torch.uint8), {"scale": 2}, "divide uint8 by 255"),
        (torch.zeros(8, 8), {"scale": 2}, "C, H, W"),
        (torch.zeros(1, 8, 8), {}, "exactly one of scale and size"),
        (torch.zeros(1, 8, 8), {"scale": 2, "size": (4, 4)}, "exactly one of scale and size"),
        (torch.zeros(1, 8, 8), {"scale": -1}, "scale must be positive"),
        (torch.zeros(1, 8, 8), {"size": (0, 4)}, "two positive integers"),
    ],
)
def test_bad_input_is_refused(image, arguments, message):
    with pytest.raises(ValueError, match=message):
        imresize(image, **arguments)


def test_without_antialiasing_four_pixels_are_weighted():
    x = torch.rand(1, 1, 16, dtype=torch.float64)
    out = imresize(x, size=(1, 4), antialias=False)
    # The sampling points lie between two pixels, where Keys' cubic is 9/16 and -1/16.
    weights = torch.tensor([-1, 9, 9, -1], dtype=torch.float64) / 16
    torch.testing.assert_close(out[0, 0, 1], x[0, 0, 4:8] @ weights)


# Without antialiasing basicsr's own function breaks at small scales: no padding at an axis' end.
@pytest.mark.parametrize(
    ("scale", "antialias"),
    [(s, True) for s in (1 / 4, 1 / 3, 1 / 2, 0.3, 2 / 3, 0.7, 1.5, 2, 3, 4)]
    + [(s, False) for s in (1 / 3, 1 / 2, 2 / 3, 0.7, 1.5, 2, 3)],
)
@pytest.mark.parametrize("shape", [(48, 40), (47, 33), (101, 75), (256, 301)])
def test_it_is_basicsr_s_imresize(shape, scale, antialias):
    try:
        reference = basicsr_module("utils.matlab_functions").imresize
    except ImportError as reason:
        pytest.skip(str(reason))
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    theirs = reference(x, scale, antialias)
    torch.testing.assert_close(imresize(x, scale, antialias=antialias), theirs, rtol=0, atol=1e-5)
