"""Precision, recall and inception score on sets whose scores are known."""

from __future__ import annotations

import math

import pytest
import torch

from papers_shared.metrics.adm import inception_score, precision_recall, radii


def test_equal_sets_cover_each_other_and_far_ones_do_not() -> None:
    a = torch.randn(50, 4)
    assert precision_recall(a, a) == (1.0, 1.0)
    assert precision_recall(a, a + 100) == (0.0, 0.0)


def test_samples_of_one_mode_have_precision_but_no_recall() -> None:
    modes = torch.cat([torch.randn(100, 2), torch.randn(100, 2) + 100])
    precision, recall = precision_recall(modes[:100], modes)
    assert precision == 1.0
    assert recall == 0.5


def test_a_ball_reaches_to_the_third_neighbour() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert radii(points)[0].item() == pytest.approx(49)
    with pytest.raises(ValueError, match="3 pictures have no neighbour number 3"):
        radii(points[:3])


def test_sure_and_different_predictions_score_the_number_of_classes() -> None:
    sure = torch.eye(5).clamp(min=1e-12).repeat(4, 1)
    assert inception_score(sure) == pytest.approx(5, rel=1e-6)
    assert inception_score(torch.full((8, 3), 1 / 3)) == pytest.approx(1)
    assert math.isclose(inception_score(sure, split=5), 5, rel_tol=1e-6)
