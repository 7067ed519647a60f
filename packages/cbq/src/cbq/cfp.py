"""CFP, coarse-to-fine pre-processing: which magnitudes are outliers, and what is done with them.

Two stages find a threshold: a coarse one by the distance of two quantiles, a fine one that splits
the candidates where the gap between the two sides, less the spread of the lower one, is largest.
Weights above it are truncated; activation channels above it are scaled down, with the factor put
into the norm before the linear and its inverse into the linear's columns.

Source: section 3.3 of the paper; ``msmodelslim`` is the form of Huawei's production code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class CFPRule:
    """What the two published forms of CFP differ in.

    Attributes:
        low, high: quantiles between which the spread is measured.
        lam1: how many spreads above ``high`` a candidate lies.
        lam2: weight of the variance in the fine stage.
        squared: whether the gap is squared.
        rho: exponent of the activation scale.
    """

    low: float = 0.25
    high: float = 0.75
    lam1: float = 1.5
    lam2: float = 1.0
    squared: bool = True
    rho: float = 0.5


RULES = {
    "paper": CFPRule(),
    "msmodelslim": CFPRule(low=0.2, high=0.8, squared=False, rho=0.7),
}


@dataclass(frozen=True)
class Outliers:
    """What the two stages found in one set of magnitudes.

    Attributes:
        threshold: the largest value that is kept; everything above it is an outlier.
        candidates: how many values passed the coarse stage.
        count: how many of them the fine stage calls outliers.
    """

    threshold: float
    candidates: int
    count: int


def find_outliers(values: Tensor, rule: CFPRule = RULES["paper"]) -> Outliers:
    """Threshold of a set of magnitudes.

    ``T = Q_high + lam1 (Q_high - Q_low)`` gives the candidates O; of all splits of the sorted O
    into a kept and an outlying part the one with the largest
    ``M = gap - lam2 Var(kept)`` counts, where ``gap = min(outlying) - max(kept)``, squared in the
    paper's form. A single candidate is an outlier. Running sums: O(n log n) in all.

    Args:
        values: any shape, at least one value.
        rule: quantiles and form.

    Raises:
        ValueError: ``values`` is empty.
    """
    if values.numel() == 0:
        raise ValueError("no values: outliers are looked for in at least one")
    ordered = values.detach().flatten().to(torch.float64).sort().values
    low, high = _quantile(ordered, rule.low), _quantile(ordered, rule.high)
    first = int(torch.searchsorted(ordered, high + rule.lam1 * (high - low), right=True))
    candidates = ordered[first:]
    n = len(candidates)
    if n == 0:
        return Outliers(float(ordered[-1]), 0, 0)
    if n == 1:
        kept = ordered[first - 1] if first else candidates[0]
        return Outliers(float(kept), 1, 1)
    # The first i candidates stay, i = 1 .. n - 1; centred, so that the squares cancel little.
    centred = candidates - candidates.mean()
    sizes = torch.arange(1, n, dtype=torch.float64, device=ordered.device)
    sums, squares = centred.cumsum(0)[:-1], centred.square().cumsum(0)[:-1]
    variance = (squares - sums.square() / sizes).clamp_min(0) / (sizes - 1).clamp_min(1)
    gap = candidates[1:] - candidates[:-1]
    measure = (gap.square() if rule.squared else gap) - rule.lam2 * variance
    # Of equal splits the one that calls fewest values outliers, as the production code has it.
    kept_count = n - 1 - int(measure.flip(0).argmax())
    return Outliers(float(candidates[kept_count - 1]), n, n - kept_count)


def _quantile(ordered: Tensor, q: float) -> Tensor:
    # torch.quantile refuses more than 16 million values; a weight may hold more.
    place = q * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def truncate_weight(
    weight: Tensor, rule: CFPRule = RULES["paper"], *, per_row: bool = False
) -> tuple[Tensor, int]:
    """``clip(W, -T*, T*)`` with the threshold of |W|, and how many weights that changed.

    Args:
        weight: (out, in).
        rule: form of the detection.
        per_row: a threshold a row instead of one for the tensor.
    """
    rows = weight if per_row else weight.reshape(1, -1)
    limits = [find_outliers(row.abs(), rule).threshold for row in rows]
    limit = torch.tensor(limits, dtype=weight.dtype, device=weight.device)[:, None]
    clipped = torch.maximum(torch.minimum(rows, limit), -limit).reshape(weight.shape)
    return clipped, int((clipped != weight).sum())


def activation_scale(
    channel_max: Tensor, channel_min: Tensor, rule: CFPRule = RULES["paper"]
) -> Tensor:
    """What each input channel is divided by: 1 but for the outliers.

    Both signs are looked at apart; an outlier's scale is ``(max_c / M)^rho``, where M is the
    largest maximum among the channels that are kept (mirrored for minima); the larger one counts.

    Args:
        channel_max, channel_min: (channels,), signed extremes over the calibration tokens.
        rule: form of the detection.

    Returns:
        (channels,) float32, at least 1.
    """
    scales = torch.ones_like(channel_max, dtype=torch.float32)
    for side in (channel_max, -channel_min):
        found = find_outliers(side, rule)
        outlying = side > found.threshold
        kept = side[~outlying].max() if (~outlying).any() else side.new_zeros(())
        if found.count and kept > 0:  # else the ratio of the two says nothing
            ratio = (side / kept).clamp_min(1).to(torch.float32) ** rule.rho
            scales = torch.where(outlying, torch.maximum(scales, ratio), scales)
    return scales


@torch.no_grad()
def fold_scale(before: nn.Module, linears: Sequence[nn.Linear], scale: Tensor) -> None:
    """Divide what ``before`` gives by ``scale`` and multiply the linears' columns by it.

    The float function stays the same but for rounding.

    Args:
        before: a norm with a weight (and maybe a bias), or the linear whose output channels these
            are.
        linears: what reads them.
        scale: (channels,).
    """
    weight, bias = before.weight, getattr(before, "bias", None)
    assert isinstance(weight, Tensor)
    scale = scale.to(weight.device)
    weight.div_(scale.to(weight.dtype).view(-1, *[1] * (weight.ndim - 1)))
    if bias is not None:
        bias.div_(scale.to(bias.dtype))
    for linear in linears:
        linear.weight.mul_(scale.to(linear.weight.device, linear.weight.dtype))
