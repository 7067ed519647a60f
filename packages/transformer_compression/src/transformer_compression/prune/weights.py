"""Which weights of a matrix stay: magnitude and Wanda, unstructured or N of every M."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pattern:
    """How many weights go, and in which pattern.

    Attributes:
        sparsity: share of weights that go; with a pattern N / M.
        n: weights that go in every group of ``m`` consecutive inputs; 0: no pattern.
        m: size of a group.
    """

    sparsity: float = 0.5
    n: int = 0
    m: int = 0

    def __post_init__(self) -> None:
        if self.m and not 0 < self.n < self.m:
            raise ValueError(f"pattern {self.n}:{self.m}: expected 0 < N < M, such as 2:4 or 4:8")
        if not self.m and self.n:
            raise ValueError(f"n={self.n} without m; expected both, such as n=2, m=4")
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity is {self.sparsity}, expected 0 <= sparsity < 1")

    @classmethod
    def of(cls, what: Pattern | str | float) -> Pattern:
        """``"2:4"``, ``"0.5"`` or ``0.5``."""
        if isinstance(what, Pattern):
            return what
        text = str(what)
        try:
            if ":" in text:
                n, m = (int(part) for part in text.split(":"))
                return cls(n / m if m else 0.0, n, m)
            return cls(float(text))
        except (ValueError, TypeError) as error:
            if "expected" in str(error):
                raise
            raise ValueError(f"pattern {what!r}: expected a share such as 0.5, or 2:4") from None

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" if self.m else f"{self.sparsity:g}"


def check_pattern(weight: Tensor, pattern: Pattern) -> bool:
    """Whether every group of M inputs has at least N zeros (with a pattern), else always True."""
    if not pattern.m:
        return True
    if weight.shape[-1] % pattern.m:
        return False
    zeros = (weight == 0).unflatten(-1, (-1, pattern.m)).sum(-1)
    return bool((zeros >= pattern.n).all())


def n_of_m_keep(scores: Tensor, pattern: Pattern) -> Tensor:
    """Per row and group of M consecutive inputs all but the N smallest scores.

    Raises:
        ValueError: M does not divide the inputs.
    """
    if scores.shape[-1] % pattern.m:
        raise ValueError(
            f"{scores.shape[-1]} inputs do not divide into groups of {pattern.m}; leave this layer "
            f"out or take an unstructured sparsity"
        )
    grouped = scores.unflatten(-1, (-1, pattern.m))
    lowest = grouped.argsort(dim=-1, stable=True)[..., : pattern.n]
    keep = torch.ones_like(grouped, dtype=torch.bool).scatter_(-1, lowest, False)
    return keep.flatten(-2)


def threshold_keep(scores: Tensor, sparsity: float) -> Tensor:
    """All scores above the one at sorted position ``int(count * sparsity)``.

    The threshold itself goes too, so one more than the nominal count (authors' code).
    """
    if sparsity == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    position = int(scores.numel() * sparsity)
    return scores > scores.flatten().kthvalue(position + 1).values


def magnitude_keep(weight: Tensor, pattern: Pattern) -> Tensor:
    """Keep the weights of largest magnitude.

    Args:
        weight: (rows, inputs).
        pattern: unstructured: one threshold for the whole matrix.

    Returns:
        bool (rows, inputs), True where the weight stays.

    Source: sheet 4.1, as in Wanda's repository.
    """
    scores = weight.abs()
    return n_of_m_keep(scores, pattern) if pattern.m else threshold_keep(scores, pattern.sparsity)


def global_magnitude_keep(weights: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """One threshold for several matrices together (sheet 4.1, global variant)."""
    scores = [weight.abs() for weight in weights]
    keep = threshold_keep(torch.cat([s.flatten() for s in scores]), sparsity)
    parts = keep.split([s.numel() for s in scores])
    return [part.view_as(score) for part, score in zip(parts, scores, strict=True)]


class InputNorms:
    """Wanda's statistic of a linear layer: ``a_j = mean over sequences of ||X_:j||^2``.

    Args:
        features: inputs of the layer.
        device: where it is kept.
    """

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        self.value = torch.zeros(features, device=device)
        self.sequences = 0

    def add(self, x: Tensor) -> None:
        """Take in inputs (B, T, features) of B sequences, or (T, features) of one."""
        count = x.shape[0] if x.ndim > 2 else 1
        total = x.detach().float().reshape(-1, x.shape[-1]).square().sum(0)
        self.value *= self.sequences / (self.sequences + count)
        self.sequences += count
        self.value += total / self.sequences


def wanda_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """``S_ij = |W_ij| sqrt(a_j)`` for (rows, inputs) and ``InputNorms.value`` (inputs,)."""
    return weight.abs() * norms.sqrt()


def wanda_keep(
    weight: Tensor, norms: Tensor, pattern: Pattern, *, equal_rows: bool = True
) -> Tensor:
    """Wanda: keep the weights of largest ``|W_ij| ||X_j||``, compared within each output row.

    Args:
        weight: (rows, inputs).
        norms: (inputs,), ``InputNorms.value``.
        pattern: unstructured: ``int(inputs * sparsity)`` go in every row.
        equal_rows: False: the variant in which rows lose different counts: in each row the smallest
            scores go whose sum is a share alpha of the row's, alpha found by bisection so that the
            matrix has the sparsity (within 0.1 %).

    Returns:
        bool (rows, inputs), True where the weight stays.

    Source: Sun et al., arXiv 2306.11695; sheet 4.2.
    """
    scores = wanda_scores(weight, norms)
    if pattern.m:
        return n_of_m_keep(scores, pattern)
    if equal_rows:
        lowest = scores.argsort(dim=1, stable=True)[:, : int(scores.shape[1] * pattern.sparsity)]
        return torch.ones_like(scores, dtype=torch.bool).scatter_(1, lowest, False)
    return _equal_mass_keep(scores, pattern.sparsity)


def _equal_mass_keep(scores: Tensor, sparsity: float) -> Tensor:
    ordered, order = scores.sort(dim=1, stable=True)
    share = ordered.cumsum(1) / ordered.sum(1, keepdim=True)
    low, high = 0.0, 1.0
    for _ in range(40):
        alpha = (low + high) / 2
        found = (share <= alpha).float().mean().item()
        if abs(found - sparsity) <= 1e-3:
            break
        low, high = (alpha, high) if found < sparsity else (low, alpha)
    return torch.empty_like(scores, dtype=torch.bool).scatter_(1, order, share > alpha)
