"""Precision, recall and inception score as ADM's evaluator computes them; FID is shared.

Source: u_dit sheet 5; Kynkaanniemi et al., NeurIPS 2019 (precision and recall).
"""

from __future__ import annotations

import torch
from torch import Tensor


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
