"""The sheet's claims about the attentions: what a pixel sees, what it costs, what is refused."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from ipt_v2.attention import FCSA, GGSA
from ipt_v2.feedforward import merge
from ipt_v2.positions import relative_position_index
from papers_shared.complexity import count_macs
from papers_shared.networks.rotary import rotate


def seen(module, side: int, row: int, column: int) -> torch.Tensor:
    """(pixels, 2): where the input changes one output pixel."""
    x = torch.randn(1, 8, side, side, requires_grad=True)
    module(x)[0, :, row, column].square().sum().backward()
    assert x.grad is not None
    return x.grad[0].abs().sum(0).nonzero()


def test_fcsa_sees_its_window_its_shifted_window_and_a_pixel_around():
    pixels = seen(FCSA(8, 8, 2), 64, 27, 30)
    assert len(pixels) == 164
    assert pixels.amin(0).tolist() == [19, 23]
    assert pixels.amax(0).tolist() == [32, 36]


def test_ggsa_sees_one_pixel_of_every_cell():
    pixels = seen(GGSA(8, 8, 2), 64, 27, 30)
    expected = [[row, column] for row in range(3, 60, 8) for column in range(6, 63, 8)]
    assert pixels.tolist() == expected


def macs(module, height: int, width: int, dim: int) -> float:
    return count_macs(module, (1, dim, height, width), rule="flop_counter").total / 2


def test_fcsa_costs_its_formula_which_is_linear_in_the_pixels():
    dim, heads, w = 16, 2, 4
    for height, width in ((8, 8), (16, 24), (4, 12)):
        pixels, inside = height * width, (height - w) * (width - w)
        formula = pixels * (4 * dim**2 + 27 * dim) + 2 * dim * (dim // heads) * (pixels + inside)
        with torch.device("meta"):
            module = FCSA(dim, w, heads)
        assert macs(module, height, width, dim) == formula


def test_ggsa_costs_its_formula_which_is_quadratic_with_fixed_cells():
    dim, p = 16, 4
    with torch.device("meta"):
        module = GGSA(dim, p, 2)
    for height, width in ((8, 8), (16, 24), (32, 32)):
        pixels = height * width
        formula = 4 * pixels * dim**2 + 2 * pixels * (pixels // p**2) * dim
        assert macs(module, height, width, dim) == formula


def test_the_score_that_the_blend_divides_by_is_found():
    module = FCSA(8, 4, 2)
    assert module.smallest_score() == 2
    with torch.no_grad():
        module.cbsa_base.mask[0, 1, 3, 0] = -0.75
        module.cbsa_slice_base.mask[0, 1, 1, 2] = 0.5  # the same pixel, half a window on
    assert module.smallest_score() == 0.25
    assert FCSA(8, 4, 2, shifted=False).smallest_score() == math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merge(torch.nn.Sequential(module))
    with torch.no_grad():
        module.cbsa_slice_base.mask[0, 1, 1, 2] = 0.7499
    with pytest.warns(UserWarning, match="unstable"):
        merge(torch.nn.Sequential(module))


def test_a_grid_may_be_rectangular_and_follows_the_number_of_tokens():
    module = GGSA(8, 4, 2)
    module.tokens_per_side = 16
    assert module._cell(64, 40) == (4, 4)  # 40 rows: 4 is the smallest divisor that leaves <= 16
    assert module(torch.randn(1, 8, 64, 40)).shape == (1, 8, 64, 40)
    assert module._cell(8, 37) == (1, 37)


def test_the_bias_index_is_the_difference_of_positions():
    index = relative_position_index(3)
    query, key = (2, 0), (0, 1)
    expected = (2 - 0 + 2) * 5 + (0 - 1 + 2)
    assert index[query[0] * 3 + query[1], key[0] * 3 + key[1]] == expected


def test_rotation_keeps_lengths_and_depends_on_differences_alone():
    x, y = torch.randn(2, 1, 1, 8).double().expand(2, 1, 12, 8)
    a, b = rotate(x, 3, 4), rotate(y, 3, 4)
    torch.testing.assert_close(a.norm(dim=-1), x.norm(dim=-1), atol=1e-5, rtol=0)
    products = (a @ b.mT)[0]
    # tokens (0, 1)-(1, 3) and (1, 0)-(2, 2) differ by one row and two columns
    torch.testing.assert_close(products[1, 7], products[4, 10], atol=1e-5, rtol=0)


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(ValueError, match="does not divide into cells of 4x4"):
        GGSA(8, 4, 2)(torch.randn(1, 8, 10, 8))
    with pytest.raises(ValueError, match="does not divide into windows of 4x4"):
        FCSA(8, 4, 2)(torch.randn(1, 8, 10, 8))
    with pytest.raises(ValueError, match="relbias was made for 4x4"):
        GGSA(8, 4, 2, input_size=16, posemb_type="relbias")(torch.randn(1, 8, 8, 8))
    with pytest.raises(ValueError, match="needs the map's side"):
        GGSA(8, 4, 2, posemb_type="relbias")
    with pytest.raises(ValueError, match="at least 2x2 cells"):
        GGSA(8, 4, 2, input_size=4, posemb_type="relbias2")
    with pytest.raises(ValueError, match="multiple of 4 channels"):
        GGSA(12, 4, 2, posemb_type="rope2d")
    with pytest.raises(ValueError, match="expected None, 'dwconvK' or 'convK'"):
        GGSA(8, 4, 2, before_attn="pool3")
    with pytest.raises(ValueError, match="even number"):
        FCSA(8, 5, 2)
    with pytest.raises(ValueError, match="divisor of the 8 channels"):
        FCSA(8, 4, 3)
