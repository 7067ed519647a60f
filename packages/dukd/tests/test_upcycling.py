"""New inputs, and transforms that can be undone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from dukd.upcycling import OPERATIONS, InvertibleTransforms, draw_cells, zoom_in, zoom_out


def test_zoom_in_cuts_the_grid_row_by_row() -> None:
    hr = torch.arange(2 * 36.0).view(2, 1, 6, 6)
    cells = zoom_in(hr, [0, 5], scale=3)
    assert cells.shape == (4, 1, 2, 2)
    assert torch.equal(cells[:2], hr[..., :2, :2])
    assert torch.equal(cells[2:], hr[..., 2:4, 4:6])


def test_all_cells_together_are_the_picture() -> None:
    hr = torch.rand(1, 3, 8, 8)
    cells = zoom_in(hr, range(4), scale=2)
    rows = [torch.cat([cells[2 * i], cells[2 * i + 1]], -1) for i in range(2)]
    assert torch.equal(torch.cat(rows, -2), hr[0])


@pytest.mark.parametrize("cells", [[], [4], [-1]])
def test_cells_that_are_not_there_are_refused(cells) -> None:
    with pytest.raises(ValueError, match="numbers from 0 to 3"):
        zoom_in(torch.rand(1, 3, 8, 8), cells, scale=2)


def test_sides_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="9x8"):
        zoom_in(torch.rand(1, 3, 9, 8), [0], scale=2)
    with pytest.raises(ValueError, match="multiples of the scale 3"):
        zoom_out(torch.rand(1, 3, 8, 8), scale=3)


def test_zoom_out_is_not_clipped() -> None:
    edge = torch.zeros(1, 3, 16, 16)
    edge[..., 7:] = 1
    out = zoom_out(edge, scale=2)
    assert out.shape == (1, 3, 8, 8)
    assert out.min() < 0
    assert out.max() > 1


def test_drawn_cells_differ_and_follow_from_the_seed() -> None:
    draw = [draw_cells(np.random.RandomState(3), 5, scale=4) for _ in range(2)]
    assert draw[0] == draw[1]
    assert len(set(draw[0])) == 5
    with pytest.raises(ValueError, match="4 cells"):
        draw_cells(np.random.RandomState(0), 5, scale=2)


@pytest.mark.parametrize("chosen", itertools.product((0, 1), repeat=4))
def test_every_combination_is_undone(chosen) -> None:
    x = torch.rand(2, 3, 5, 5)
    items = {name: [1] * bit for name, bit in zip(OPERATIONS, chosen, strict=True)}
    transforms = InvertibleTransforms.of(2, items)
    there = transforms.apply(x)
    assert torch.equal(there[0], x[0])
    assert torch.equal(there[1], x[1]) == (not any(chosen))
    assert torch.allclose(transforms.undo(there), x)
    _, rows, columns, transposed = chosen
    wrong = transposed and rows != columns
    assert torch.allclose(transforms.undo(there, released_order=True), x) == (not wrong)


def test_operations_can_be_left_out_without_changing_the_draws_of_others() -> None:
    both = [
        InvertibleTransforms.draw(np.random.RandomState(1), 50, operations=names)
        for names in ("ihvt", "t")
    ]
    assert torch.equal(both[0].transposed, both[1].transposed)
    assert both[0].inverted.any()
    assert not both[1].inverted.any()
    with pytest.raises(ValueError, match="ihvt"):
        InvertibleTransforms.draw(np.random.RandomState(1), 2, operations="x")


def test_only_square_patches_can_be_transposed_in_part() -> None:
    with pytest.raises(ValueError, match="square"):
        InvertibleTransforms.of(2, {"t": [0]}).apply(torch.rand(2, 3, 4, 5))
