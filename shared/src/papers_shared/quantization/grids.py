"""Uniform grids: ``w^ = (q - z) s`` with unsigned codes q in 0 .. 2^bits - 1.

The papers' own codes differ in how they come from a range to scale and zero; each way is a named
``rule``. A grid belongs to a matrix (rows, inputs), with one scale a row or a group of inputs.
Per-token activations are rows too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

Rule = Literal["portable", "gptq", "omniquant", "awq", "brecq", "smoothquant"]
Search = Literal["none", "mse", "weighted", "gptq"]
_SMALLEST_NORMAL_HALF = 2.0**-14
# Numbers that a search works on at a time: what a CPU's cache holds, what fills a GPU.
_AT_A_TIME = {"cpu": 1 << 16}
_AT_A_TIME_ELSEWHERE = 1 << 24


def round_ste(x: Tensor) -> Tensor:
    """Half-to-even rounding whose gradient is 1."""
    return x + (x.round() - x).detach()


def clamp_ste(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp whose gradient is 1 everywhere."""
    return x + (x.clamp(low, high) - x).detach()


@dataclass(frozen=True)
class Grid:
    """The grid of a matrix (rows, inputs).

    Attributes:
        scale: (rows, groups), positive.
        zero: (rows, groups), whole numbers in floating point.
        bits: bits a code, 1 to 16.
        group: inputs a group.
        symmetric: the zero carries no information.
    """

    scale: Tensor
    zero: Tensor
    bits: int
    group: int
    symmetric: bool = False

    @property
    def top(self) -> int:
        """The largest code."""
        return 2**self.bits - 1

    def codes(self, weight: Tensor) -> Tensor:
        """(rows, inputs) -> whole numbers 0 .. top of the same shape and dtype."""
        grouped = weight.unflatten(1, (-1, self.group))
        scale, zero = self.scale[..., None], self.zero[..., None]
        return (torch.round(grouped / scale) + zero).clamp(0, self.top).flatten(1)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Codes (rows, inputs) -> values."""
        grouped = codes.to(self.scale.dtype).unflatten(1, (-1, self.group))
        return ((grouped - self.zero[..., None]) * self.scale[..., None]).flatten(1)

    def nearest(self, weight: Tensor) -> Tensor:
        """Every weight moved to the nearest point of the grid."""
        return self.dequantize(self.codes(weight))

    def nearest_ste(self, weight: Tensor, offset: Tensor | float = 0.0) -> Tensor:
        """``nearest`` with gradients to weight, scale, zero and ``offset`` (straight through).

        Args:
            weight: (rows, inputs).
            offset: added to ``weight / scale`` before it is rounded, in steps.
        """
        scale, zero = self.scale[..., None], self.zero[..., None]
        steps = (weight.unflatten(1, (-1, self.group)) / scale).flatten(1) + offset
        codes = round_ste(steps).unflatten(1, (-1, self.group)) + zero
        return ((codes.clamp(0, self.top) - zero) * scale).flatten(1)


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight matrix as stored: codes and their grid.

    Attributes:
        codes: uint8 (rows, inputs); bits <= 8.
        grid: of the same rows and inputs.
    """

    codes: Tensor
    grid: Grid

    def dequantize(self) -> Tensor:
        """(rows, inputs) in the scale's dtype."""
        return self.grid.dequantize(self.codes)

    def cpu(self) -> QuantizedWeight:
        """The same on the CPU."""
        scale, zero = self.grid.scale.cpu(), self.grid.zero.cpu()
        return QuantizedWeight(self.codes.cpu(), replace(self.grid, scale=scale, zero=zero))


def grid_from_range(
    low: Tensor, high: Tensor, *, bits: int, group: int, symmetric: bool = False, rule: Rule
) -> Grid:
    """Scale and zero of ranges; differentiable in both ends.

    Args:
        low, high: (rows, groups), the smallest and largest value of each group.
        bits: bits a code.
        group: inputs a group.
        symmetric: one scale for both signs.
        rule: ``omniquant`` (zero may leave 0 .. top), ``awq`` (asymmetric only), ``gptq``
            (zero within the range), ``brecq`` (computed in float64), ``smoothquant`` (symmetric
            only: codes -(2^(bits-1) - 1) .. 2^(bits-1) - 1), ``portable`` (ours: zero within the
            range, z within 0 .. top, scale rounded to float16, so that every format stores
            exactly what was evaluated).

    Raises:
        ValueError: unknown rule, bits out of range, or a symmetric grid that the rule has not.

    Source: CBQ sheet 3.2 (OmniQuant, GPTQ, BRECQ and llm-awq as released).
    """
    if not 1 <= bits <= 16:
        raise ValueError(f"bits={bits}: expected 1 to 16")
    top = 2**bits - 1
    middle = 2 ** (bits - 1)
    if rule not in get_args(Rule):
        raise ValueError(f"rule={rule!r}: expected one of {', '.join(get_args(Rule))}")
    if symmetric and rule in ("awq", "brecq"):
        raise ValueError(f"the rule {rule!r} has no symmetric grid; take gptq or portable")
    if rule == "smoothquant":
        if not symmetric:
            raise ValueError("the rule 'smoothquant' is symmetric; take portable or omniquant")
        scale = torch.maximum(low.abs(), high.abs()).clamp(min=1e-5) / (middle - 1)
        return Grid(scale, torch.full_like(scale, middle), bits, group, True)
    if rule == "omniquant":
        if symmetric:
            scale = (torch.maximum(low.abs(), high.abs()) / (middle - 1)).clamp(1e-5, 1e4)
            zero = torch.full_like(scale, middle - 1)
        else:
            scale = ((high - low) / top).clamp(1e-5, 1e4)
            zero = round_ste((-low / scale).clamp(-1e4, 1e4))
        return Grid(scale, zero, bits, group, symmetric)
    if rule == "awq":
        scale = (high - low).clamp(min=1e-5) / top
        return Grid(scale, (-round_ste(low / scale)).clamp(0, top), bits, group)
    low, high = low.clamp(max=0), high.clamp(min=0)
    if rule == "brecq":
        wide = ((high.double() - low.double()) / top).clamp(min=1e-8)
        zero = torch.round(-low.double() / wide)
        return Grid(wide.to(low.dtype), zero.to(low.dtype), bits, group)
    if symmetric:
        ends = torch.maximum(low.abs(), high)
        low, high = torch.where(low < 0, -ends, low), ends
    empty = (low == 0) & (high == 0)
    low, high = torch.where(empty, -torch.ones_like(low), low), torch.where(empty, 1.0, high)
    scale = (high - low) / top
    if rule == "portable":
        if symmetric:
            scale = 2 * torch.maximum(-low, high) / top
        # Half precision is what GPTQ files hold.
        stored = scale.detach().clamp(min=_SMALLEST_NORMAL_HALF).half().to(scale.dtype)
        scale = scale + (stored - scale).detach()
    zero = torch.full_like(scale, middle) if symmetric else round_ste(-low / scale)
    return Grid(scale, zero.clamp(0, top), bits, group, symmetric)


def in_groups(weight: Tensor, group: int) -> tuple[Tensor, int]:
    """A matrix as (rows, groups, inputs of a group), and how many inputs that are.

    Args:
        weight: (rows, inputs).
        group: inputs a group; -1: the whole row.

    Raises:
        ValueError: no matrix, or the inputs do not divide into groups.
    """
    if weight.ndim != 2:
        raise ValueError(f"a matrix is quantized, not a tensor of shape {tuple(weight.shape)}")
    inputs = weight.shape[1]
    group = inputs if group == -1 else group
    if group < 1 or inputs % group:
        raise ValueError(
            f"{inputs} inputs do not divide into groups of {group}; take a divisor, or -1 for one "
            f"group a row"
        )
    return weight.unflatten(1, (-1, group)), group


def minmax_grid(
    weight: Tensor, *, bits: int, group: int = -1, symmetric: bool = False, rule: Rule = "portable"
) -> Grid:
    """The grid from each group's smallest to its largest value.

    Args:
        weight: (rows, inputs).
        bits: bits a code.
        group: inputs a group; -1: the whole row.
        symmetric: one scale for both signs.
        rule: see ``grid_from_range``.

    Raises:
        ValueError: no matrix, or the inputs do not divide into groups.
    """
    grouped, group = in_groups(weight, group)
    ends = grouped.amin(-1), grouped.amax(-1)
    return grid_from_range(*ends, bits=bits, group=group, symmetric=symmetric, rule=rule)


def search_grid(
    weight: Tensor,
    *,
    bits: int,
    group: int = -1,
    symmetric: bool = False,
    rule: Rule = "portable",
    importance: Tensor | None = None,
    candidates: int = 70,
    divisor: int = 100,
    norm: float = 2.0,
) -> Grid:
    """The best of several shrunk ranges: both ends times ``p = 1 - i / divisor``.

    Least ``sum_j importance_j |w_j - w^_j|^norm`` for each row and group; of equal ones the widest.

    Args:
        weight: (rows, inputs).
        bits, group, symmetric, rule: see ``minmax_grid``.
        importance: (inputs,), mean square of each input over the calibration tokens; None: 1.
        candidates: how many i, from 0.
        divisor: of the shrink factor.
        norm: exponent of the error.

    Source: CBQ sheet 3.2; GPTQ's own search is ``norm=2.4, candidates=80``, unweighted.
    """
    if candidates < 1:
        raise ValueError(f"candidates={candidates}: expected 1 or more")
    grouped, group = in_groups(weight, group)
    weights = None if importance is None else importance.to(weight).reshape(1, -1, group)
    shrink = (1 - torch.arange(candidates, dtype=torch.float64) / divisor).to(weight)
    scales, zeros = [], []
    numbers = _AT_A_TIME.get(weight.device.type, _AT_A_TIME_ELSEWHERE)
    for part in grouped.detach().split(max(1, numbers // weight.shape[1])):
        ends = (end[..., None] * shrink for end in (part.amin(-1), part.amax(-1)))
        grid = grid_from_range(*ends, bits=bits, group=group, symmetric=symmetric, rule=rule)
        errors = torch.empty_like(grid.scale)
        work = torch.empty_like(part)
        for i in range(candidates):
            s, z = grid.scale[..., i, None], grid.zero[..., i, None]
            torch.div(part, s, out=work)
            work.round_().add_(z).clamp_(0, grid.top).sub_(z).mul_(s).sub_(part)
            work = work.square_() if norm == 2 else work.abs_().pow_(norm)
            torch.sum(work if weights is None else work.mul_(weights), -1, out=errors[..., i])
        best = errors.argmin(-1, keepdim=True)  # the first of equal ones
        scales.append(grid.scale.gather(-1, best)[..., 0])
        zeros.append(grid.zero.gather(-1, best)[..., 0])
    return Grid(torch.cat(scales), torch.cat(zeros), bits, group, symmetric)


@dataclass(frozen=True)
class GridRule:
    """How the grid of a weight is found; what every method of a table has in common.

    Attributes:
        bits: bits a code.
        group: inputs a group; -1: the whole row.
        symmetric: one scale for both signs.
        rule: see ``grid_from_range``.
        search: ``none``: from the smallest to the largest value; ``mse``: of 70 shrunk ranges the
            one of least squared error; ``weighted``: the same with each input's mean square as
            weight; ``gptq``: GPTQ's own search (exponent 2.4, 80 ranges).
    """

    bits: int = 4
    group: int = -1
    symmetric: bool = False
    rule: Rule = "portable"
    search: Search = "weighted"

    def __call__(self, weight: Tensor, importance: Tensor | None = None) -> Grid:
        """The grid of a matrix (rows, inputs).

        Args:
            weight: (rows, inputs).
            importance: (inputs,), mean square of the inputs; needed by ``search="weighted"``.

        Raises:
            ValueError: ``weighted`` without importance, or an unknown search.
        """
        if self.search not in get_args(Search):
            raise ValueError(f"search={self.search!r}: expected one of {get_args(Search)}")
        if self.search == "weighted" and importance is None:
            raise ValueError(
                "search='weighted' needs the inputs' mean squares, which come from calibration "
                "text; give them, or take search='mse'"
            )
        find: Callable[..., Grid] = minmax_grid if self.search == "none" else search_grid
        if self.search == "weighted":
            find = partial(find, importance=importance)
        if self.search == "gptq":
            find = partial(find, norm=2.4, candidates=80)
        return find(
            weight, bits=self.bits, group=self.group, symmetric=self.symmetric, rule=self.rule
        )


def round_to_nearest(
    weight: Tensor, rule: GridRule, importance: Tensor | None = None
) -> QuantizedWeight:
    """RTN: every weight to the nearest point of its grid; bits <= 8."""
    grid = rule(weight, importance)
    return QuantizedWeight(grid.codes(weight).to(torch.uint8), grid)


def quantized_bytes(
    rows: int, inputs: int, *, bits: int, group: int = -1, symmetric: bool = False
) -> float:
    """Bytes of a quantized matrix: codes, a 16-bit scale a group, a zero of ``bits`` bits.

    Source: sheet section 3 (the byte rule of our report).
    """
    groups = rows * (1 if group == -1 else inputs // group)
    return (rows * inputs * bits + groups * (16 + (0 if symmetric else bits))) / 8
