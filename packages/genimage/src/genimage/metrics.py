"""Metrics of a detector's probabilities: real and generated pictures apart, and together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Scores:
    """What a detector achieves on a test set; shares in percent, NaN where a class is missing.

    Attributes:
        real, generated: numbers of pictures.
        accuracy: of all pictures, threshold ``threshold`` (the paper's metric for equal classes).
        accuracy_real, accuracy_generated: of each class; 100 and 0 mean "all called real".
        balanced: their mean.
        ap: average precision, generated being the positive class.
        auc: area under the ROC curve.
        fpr_at_99: share of real pictures called generated when 99 % of generated ones are found.
        tpr_at_1: share of generated pictures found when 1 % of real ones are called generated.
        ece: expected calibration error of the probability, 15 bins.
        best_balanced: the best balanced accuracy that a threshold chosen on this set could give.
        unsure: share of pictures between ``1 - sure`` and ``sure``, where the answer is "unsure".
        accuracy_sure: balanced accuracy of the others.
    """

    real: int
    generated: int
    accuracy: float
    accuracy_real: float
    accuracy_generated: float
    balanced: float
    ap: float
    auc: float
    fpr_at_99: float
    tpr_at_1: float
    ece: float
    best_balanced: float
    unsure: float
    accuracy_sure: float
    threshold: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        missing = (k for k, v in asdict(self).items() if isinstance(v, float) and math.isnan(v))
        return asdict(self) | dict.fromkeys(missing)


def score(
    probabilities: Sequence[float],
    labels: Sequence[int],
    *,
    threshold: float = 0.5,
    sure: float = 0.9,
) -> Scores:
    """Metrics of a test set.

    Args:
        probabilities: of "generated", each in [0, 1].
        labels: 0 real, 1 generated.
        threshold: a picture is called generated above it.
        sure: probabilities between ``1 - sure`` and it count as "unsure".

    Raises:
        ValueError: nothing to count, a NaN, or a label that is neither 0 nor 1.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    y = np.asarray(labels, dtype=np.int64)
    if p.shape != y.shape or p.ndim != 1 or not len(p):
        raise ValueError(f"{p.shape} probabilities and {y.shape} labels; expected as many of both")
    if not np.isin(y, (0, 1)).all() or not np.isfinite(p).all():
        raise ValueError("labels must be 0 or 1, and probabilities finite")
    called = p > threshold
    real, generated = y == 0, y == 1
    acc_real, acc_generated = _percent(~called[real]), _percent(called[generated])
    certain = (p >= sure) | (p <= 1 - sure)
    sure_both = [_percent((called == (y == c))[certain & (y == c)]) for c in (0, 1)]
    return Scores(
        int(real.sum()),
        int(generated.sum()),
        _percent(called == generated),
        acc_real,
        acc_generated,
        (acc_real + acc_generated) / 2,
        100 * average_precision(p, y),
        100 * roc_auc(p, y),
        _false_positives(p[real], p[generated], found=0.99),
        _true_positives(p[real], p[generated], false=0.01),
        calibration_error(p, y),
        best_balanced(p, y),
        _percent(~certain),
        sum(sure_both) / 2,
        threshold,
    )


def _percent(right: np.ndarray) -> float:
    return 100 * float(right.mean()) if len(right) else math.nan


def roc_auc(p: np.ndarray, y: np.ndarray) -> float:
    """Probability that a generated picture scores above a real one; ties count half."""
    positives, negatives = int((y == 1).sum()), int((y == 0).sum())
    if not positives or not negatives:
        return math.nan
    _, places, counts = np.unique(p, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[places][y == 1].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def average_precision(p: np.ndarray, y: np.ndarray) -> float:
    """Sum of precision times gain in recall over falling thresholds; equal scores are one step."""
    positives = int((y == 1).sum())
    if not positives:
        return math.nan
    order = np.argsort(-p, kind="stable")
    found = np.cumsum(y[order] == 1)
    steps = np.append(np.flatnonzero(np.diff(p[order])), len(p) - 1)
    hits = found[steps]
    gains = np.diff(np.append(0, hits))
    return float((gains * hits / (steps + 1)).sum() / positives)


def _false_positives(real: np.ndarray, generated: np.ndarray, *, found: float) -> float:
    if not len(real) or not len(generated):
        return math.nan
    threshold = np.sort(generated)[len(generated) - math.ceil(found * len(generated))]
    return _percent(real >= threshold)


def _true_positives(real: np.ndarray, generated: np.ndarray, *, false: float) -> float:
    if not len(real) or not len(generated):
        return math.nan
    threshold = np.sort(real)[::-1][math.floor(false * len(real))]
    return _percent(generated > threshold)


def calibration_error(p: np.ndarray, y: np.ndarray, *, bins: int = 15) -> float:
    """Mean over pictures of |share that is generated - mean probability| in equal bins, percent."""
    place = np.minimum((p * bins).astype(int), bins - 1)
    total = 0.0
    for number in range(bins):
        inside = place == number
        if inside.any():
            total += inside.sum() * abs(float(y[inside].mean()) - float(p[inside].mean()))
    return 100 * total / len(p)


def best_balanced(p: np.ndarray, y: np.ndarray) -> float:
    """Balanced accuracy in percent at the best threshold for this very set: an upper bound."""
    positives, negatives = int((y == 1).sum()), int((y == 0).sum())
    if not positives or not negatives:
        return math.nan
    order = np.argsort(-p, kind="stable")
    steps = np.append(np.flatnonzero(np.diff(p[order])), len(p) - 1)
    found = np.cumsum(y[order] == 1)[steps] / positives
    false = np.cumsum(y[order] == 0)[steps] / negatives
    return 100 * max(0.5, float(((found + 1 - false) / 2).max()))


def wilson(right: int, of: int, *, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, in percent."""
    if not of:
        return math.nan, math.nan
    share = right / of
    middle = share + z * z / (2 * of)
    spread = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    scale = 1 + z * z / of
    return 100 * (middle - spread) / scale, 100 * (middle + spread) / scale
