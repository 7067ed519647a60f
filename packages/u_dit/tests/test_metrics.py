"""Precision, recall and inception score on sets whose scores are known."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch

from papers_shared.data.cifar10 import load_cifar10
from papers_shared.metrics.adm import (
    adm_scores,
    inception_score,
    moments_of,
    precision_recall,
    radii,
    read_statistics,
    statistics_of,
)
from papers_shared.metrics.cifar_features import cifar_features, load_cifar_network
from papers_shared.metrics.frechet import frechet_distance
from u_dit.cli import main


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


def test_stored_statistics_give_the_distance_of_the_pictures(tmp_path) -> None:
    made, real = torch.randn(300, 6), torch.randn(400, 6) * 1.5 + 0.3
    spatial_made, spatial_real = torch.randn(300, 5), torch.randn(400, 5) + 1
    (mean, covariance), (mean_s, covariance_s) = moments_of(real), moments_of(spatial_real)
    np.savez(tmp_path / "r.npz", mu=mean, sigma=covariance, mu_s=mean_s, sigma_s=covariance_s)
    stored = read_statistics(tmp_path / "r.npz")
    assert stored is not None
    scores = adm_scores(statistics_of(made, None, spatial_made), stored)
    assert set(scores) == {"fid", "sfid"}
    assert scores["fid"] == pytest.approx(frechet_distance(made, real), rel=1e-6)
    assert scores["sfid"] == pytest.approx(frechet_distance(spatial_made, spatial_real), rel=1e-6)
    whole = adm_scores(statistics_of(made), stored.with_features(statistics_of(real)))
    assert whole["precision"] == precision_recall(made, real)[0]


def test_half_of_the_statistics_is_an_error(tmp_path) -> None:
    np.savez(tmp_path / "r.npz", mu=np.zeros(4))
    with pytest.raises(ValueError, match="a mean and its covariance go together"):
        read_statistics(tmp_path / "r.npz")
    np.savez(tmp_path / "p.npz", arr_0=np.zeros((4, 8, 8, 3), np.uint8))
    assert read_statistics(tmp_path / "p.npz") is None


@pytest.mark.skipif(not os.environ.get("PAPERS_MIRROR"), reason="PAPERS_MIRROR is not set")
def test_the_cifar_classifier_is_the_published_one() -> None:
    """91.73 % of all test pictures; of the first 1000 about as many."""
    cifar = load_cifar10("test")
    features, probabilities = cifar_features(load_cifar_network(), cifar.images[:1000])
    assert features.shape == (1000, 64)
    right = (probabilities.argmax(1) == cifar.labels[:1000]).float().mean().item()
    assert right == pytest.approx(0.9173, abs=0.02)


@pytest.mark.skipif(not os.environ.get("PAPERS_MIRROR"), reason="PAPERS_MIRROR is not set")
def test_real_pictures_are_nearer_than_noise(tmp_path, capsys) -> None:
    pictures = load_cifar10("test").images[:200].permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "real.npz", arr_0=pictures[:100])
    np.savez(tmp_path / "other.npz", arr_0=pictures[100:])
    noise = np.random.default_rng(0).integers(0, 255, (100, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", arr_0=noise)
    found = []
    for name in ("real", "noise"):
        command = ["eval", "--features", "cifar10", "--samples", str(tmp_path / f"{name}.npz")]
        assert main([*command, "--reference", str(tmp_path / "other.npz")]) == 0
        line = next(x for x in capsys.readouterr().out.splitlines() if "frechet" in x)
        found.append(float(line.split()[1]))
    assert 10 * found[0] < found[1]
