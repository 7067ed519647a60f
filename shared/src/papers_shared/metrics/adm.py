"""The scores of ADM's evaluator: FID, sFID, inception score, precision and recall.

Source: Dhariwal and Nichol, NeurIPS 2021; u_dit sheet 5; Kynkaanniemi et al., NeurIPS 2019
(precision and recall); Nash et al., ICML 2021 (sFID).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from papers_shared.metrics.frechet import Inception, frechet_distance

SPATIAL_CHANNELS = 7
STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")


def squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """(n, d) and (m, d) to (n, m), ``max(|u|^2 - 2 u v + |v|^2, 0)``."""
    norms = first.square().sum(1)[:, None] + second.square().sum(1)
    return (norms - 2 * first @ second.T).clamp(min=0)


def radii(features: Tensor, *, k: int = 3) -> Tensor:
    """(n, d) to (n,): squared distance to the k-th neighbour beside itself."""
    if len(features) <= k:
        raise ValueError(f"{len(features)} pictures have no neighbour number {k}; give more")
    return torch.cat(
        [squared_distances(part, features).kthvalue(k + 1).values for part in features.split(1024)]
    )


def precision_recall(samples: Tensor, reference: Tensor, *, k: int = 3) -> tuple[float, float]:
    """Share of samples in any ball of the reference, and the other way round.

    Args:
        samples: (n, d) features.
        reference: (m, d).
        k: balls reach to the k-th neighbour.
    """

    def covered(points: Tensor, centres: Tensor) -> float:
        reach = radii(centres, k=k)
        inside = [(squared_distances(part, centres) <= reach).any(1) for part in points.split(1024)]
        return torch.cat(inside).double().mean().item()

    return covered(samples, reference), covered(reference, samples)


def inception_score(probabilities: Tensor, *, split: int = 5000) -> float:
    """``exp(mean KL(p || group mean))``, mean over groups of ``split`` in order.

    Args:
        probabilities: (n, classes), rows sum to 1.
        split: pictures a group.
    """
    scores = []
    for group in probabilities.double().split(split):
        kl = (group * (group.log() - group.mean(0).log())).sum(1)
        scores.append(kl.mean().exp())
    return torch.stack(scores).mean().item()


@dataclass(frozen=True)
class Statistics:
    """What is known of a set of pictures.

    Attributes:
        moments: mean (d,) and covariance (d, d), float64, of the pooled features.
        spatial_moments: the same of the spatial ones, for sFID.
        pool: pooled features (n, d), for precision and recall.
        probabilities: (n, classes), for the inception score.
    """

    moments: tuple[Tensor, Tensor]
    spatial_moments: tuple[Tensor, Tensor] | None = None
    pool: Tensor | None = None
    probabilities: Tensor | None = None

    def with_features(self, other: Statistics) -> Statistics:
        """The same moments with another set's features, as ADM's reference batches have it."""
        return replace(self, pool=other.pool)


def moments_of(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance (Bessel's correction) of (n, d), float64."""
    whole = features.double()
    return whole.mean(0), torch.cov(whole.T)


def statistics_of(
    pool: Tensor, probabilities: Tensor | None = None, spatial: Tensor | None = None
) -> Statistics:
    """From features (n, d), class probabilities (n, classes) and spatial features (n, e)."""
    moments = None if spatial is None else moments_of(spatial)
    return Statistics(moments_of(pool), moments, pool.float(), probabilities)


def frechet_of_moments(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """Squared Frechet distance of two normal distributions, each a mean and a covariance.

    The trace of the root of S1 S2 is the sum of the singular values of the product of their
    symmetric roots: no imaginary parts.
    """
    (mean_1, covariance_1), (mean_2, covariance_2) = first, second
    cross = torch.linalg.svdvals(_root(covariance_1) @ _root(covariance_2)).sum()
    traces = covariance_1.trace() + covariance_2.trace() - 2 * cross
    return max(((mean_1 - mean_2).square().sum() + traces).item(), 0.0)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance.double())
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def adm_scores(
    samples: Statistics, reference: Statistics, *, split: int = 5000
) -> dict[str, float]:
    """Every score that both sets allow: fid, sfid, inception_score, precision, recall."""
    if samples.pool is not None and reference.pool is not None:
        fid = (
            frechet_of_moments(samples.moments, reference.moments)
            if len(samples.pool) > samples.pool.shape[1]
            else frechet_distance(samples.pool, reference.pool)
        )
        precision, recall = precision_recall(samples.pool, reference.pool)
        scores = {"fid": fid, "precision": precision, "recall": recall}
    else:
        scores = {"fid": frechet_of_moments(samples.moments, reference.moments)}
    if samples.spatial_moments is not None and reference.spatial_moments is not None:
        scores["sfid"] = frechet_of_moments(samples.spatial_moments, reference.spatial_moments)
    if samples.probabilities is not None:
        scores["inception_score"] = inception_score(samples.probabilities, split=split)
    return scores


def read_statistics(path: Path) -> Statistics | None:
    """Moments that ADM stored beside its reference pictures; None if a file holds none.

    Args:
        path: an .npz with ``mu``, ``sigma`` and, for sFID, ``mu_s``, ``sigma_s``.

    Raises:
        ValueError: one of a pair is missing, or shapes do not fit.
    """
    if path.suffix != ".npz" or not path.is_file():
        return None
    with np.load(path) as file:
        found = {name: torch.from_numpy(file[name]).double() for name in STATISTICS if name in file}
    pairs = [(found.get(m), found.get(s)) for m, s in (STATISTICS[:2], STATISTICS[2:])]
    for mean, covariance in pairs:
        if (mean is None) != (covariance is None):
            raise ValueError(
                f"{path} holds {', '.join(found)}: a mean and its covariance go together"
            )
        if mean is not None and covariance is not None and covariance.shape != 2 * mean.shape:
            raise ValueError(
                f"{path}: a mean of {len(mean)} and a covariance of {covariance.shape}"
            )
    (mean, covariance), (mean_s, covariance_s) = pairs
    if mean is None or covariance is None:
        return None
    spatial = None if mean_s is None or covariance_s is None else (mean_s, covariance_s)
    return Statistics((mean, covariance), spatial)


class AdmInception(Inception):
    """What ADM's evaluator takes from FID's Inception network, over torch-fidelity's port.

    Pooled features (2048); the first 7 channels of the first branch of the block that torch ports
    call Mixed_6d, 17x17, channel last (sFID); class probabilities without the classifier's bias.

    Arguments as of ``Inception``.
    """

    def __init__(
        self, *, weights: Path | str | None = None, device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(weights=weights, device=device)
        self._spatial: list[Tensor] = []
        self.network.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, module: Any, given: Any, out: Tensor) -> None:
        self._spatial.append(out[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).cpu())

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Tensor]) -> Statistics:  # type: ignore[override]
        """Of uint8 pictures (3, H, W)."""
        pool, self._spatial = [], []
        for picture in pictures:
            (pooled,) = self.network(picture[None].to(self.device))
            pool.append(pooled.cpu())
        features = torch.cat(pool).float()
        logits = features @ self.network.fc.weight.detach().cpu().T
        return statistics_of(features, logits.softmax(1), torch.cat(self._spatial))
