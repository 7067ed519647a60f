"""What a window minimises: the distance of hidden states, twice (homologous reconstruction)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

L2 = Literal["token", "mean", "sum"]


@dataclass(frozen=True)
class Distance:
    """``E(h1, h2) = |h1 - h2|^2 + kl D_KL(softmax(h1) || softmax(h2))``, softmax over channels.

    Attributes:
        l2: ``token``: squared error of a token over the squared norm of its target, mean over
            tokens (a few tokens of SmolLM2 hold 95 % of the squared norm of all; a plain L2 fits
            those alone); ``mean``: over all elements; ``sum``: summed over the hidden dimension,
            mean over tokens, as the paper prints it.
        l2_weight: of the first term; 0 leaves it out.
        kl: weight of the second; 0 leaves it out.

    Source: section 3.1 of the paper (its l2 is the sum).
    """

    l2: L2 = "token"
    l2_weight: float = 1.0
    kl: float = 0.0

    def __call__(self, target: Tensor, output: Tensor) -> Tensor:
        """A scalar.

        Args:
            target: (B, T, C), what the float blocks give.
            output: (B, T, C), what the quantized ones give.
        """
        target, output = target.float(), output.float()
        total = output.new_zeros(())
        if self.l2_weight:
            total = total + self.l2_weight * self._squares(target, output)
        if self.kl:
            log_p, log_q = target.log_softmax(-1), output.log_softmax(-1)
            total = total + self.kl * (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        return total

    def _squares(self, target: Tensor, output: Tensor) -> Tensor:
        error = (output - target).square()
        if self.l2 == "mean":
            return error.mean()
        if self.l2 == "sum":
            return error.sum(-1).mean()
        norm = target.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
        return (error.sum(-1) / norm).mean()


def homologous(
    distance: Distance, output: Tensor, clean: Tensor | None, same: Tensor | None
) -> Tensor:
    """``E(T(X_fp), T_q(X_q)) + E(T(X_q), T_q(X_q))``; None leaves a term out.

    Args:
        distance: E.
        output: ``T_q(X_q)``.
        clean: ``T(X_fp)``: float blocks on the float stream.
        same: ``T(X_q)``: float blocks on the quantized stream.

    Raises:
        ValueError: both terms are left out.
    """
    terms = [distance(target, output) for target in (clean, same) if target is not None]
    if not terms:
        raise ValueError("a window needs a target: the float stream's, the quantized one's or both")
    return torch.stack(terms).sum()
