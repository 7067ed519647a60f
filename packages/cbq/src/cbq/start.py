"""Where a block's reconstruction begins: outliers treated, start scales, start codes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cbq.adapters import scalable_pairs
from cbq.cfp import RULES, activation_scale, fold_scale, truncate_weight
from cbq.layers import CBQLinear, Start
from cbq.settings import Settings
from papers_shared.language_models import BlockStream, block_linears
from papers_shared.language_models.blocks import observe_inputs
from papers_shared.quantization import Grid, GridRule, Hessian, gptq, quantize_attention


@dataclass
class InputStatistics:
    """What the float model feeds into a block's linear layers.

    Attributes:
        squares: layer -> mean square of each input.
        largest, smallest: layer -> extremes of each input.
        hessians: layer -> GPTQ's Hessian, where it was asked for.
    """

    squares: dict[str, Tensor] = field(default_factory=dict)
    largest: dict[str, Tensor] = field(default_factory=dict)
    smallest: dict[str, Tensor] = field(default_factory=dict)
    hessians: dict[str, Hessian] = field(default_factory=dict)


def observe(
    block: nn.Module,
    hidden: Sequence[Tensor],
    arguments: Mapping[str, Any],
    *,
    hessians: bool,
    device: torch.device,
) -> tuple[InputStatistics, list[Tensor]]:
    """Run a block on every segment; statistics of its linears' inputs, and what comes out.

    Args:
        block: on ``device``.
        hidden: one (1, T, D) a segment, on the CPU.
        arguments: of the block's forward, the same for all.
        hessians: also collect GPTQ's.
        device: where the block runs.
    """
    found = InputStatistics()
    owners: dict[str, str] = {}  # layers that read the same inputs share a Hessian
    before: list[tuple[Tensor, str]] = []

    def take(name: str, x: Tensor) -> None:
        if name not in owners:
            owners[name] = before[0][1] if before and _same(before[0][0], x) else name
        if owners[name] != name:
            return
        before[:] = [(x, name)]
        flat = x.flatten(0, -2).float()
        if name not in found.squares:
            found.squares[name] = torch.zeros(flat.shape[1], device=x.device)
            found.largest[name], found.smallest[name] = flat.amax(0), flat.amin(0)
            if hessians:
                found.hessians[name] = Hessian(flat.shape[1], x.device)
        found.squares[name] += flat.square().mean(0) / len(hidden)
        found.largest[name] = torch.maximum(found.largest[name], flat.amax(0))
        found.smallest[name] = torch.minimum(found.smallest[name], flat.amin(0))
        if hessians:
            found.hessians[name].add(flat[None])

    after = []
    for segment in hidden:
        stream = BlockStream([segment.to(device)], [dict(arguments)])
        after.append(observe_inputs(block, stream, take).hidden[0].cpu())
        before.clear()
    for name, owner in owners.items():
        kinds: list[dict[str, Any]] = [found.squares, found.largest, found.smallest]
        for kind in [*kinds, found.hessians] if hessians else kinds:
            kind[name] = kind[owner]
    return found, after


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors that are alive are one: a hook gets a new one of the same memory."""
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def scale_channels(block: nn.Module, statistics: InputStatistics, settings: Settings) -> int:
    """CFP for activations, in place on the float block; how many channels were scaled.

    Statistics of the scaled layers are scaled with them.
    """
    count = 0
    names = {layer: name for name, layer in block_linears(block).items()}
    for before, linears, reader in scalable_pairs(block):
        scale = activation_scale(
            statistics.largest[reader], statistics.smallest[reader], RULES[settings.cfp]
        )
        if (scale != 1).any():
            count += int((scale != 1).sum())
            fold_scale(before, linears, scale)
            for linear in linears:
                name = names[linear]
                statistics.squares[name] = statistics.squares[name] / scale.square()
    return count


class FixedGrid:
    """A grid that was found before, in the place of the rule that finds it."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.bits, self.group, self.symmetric = grid.bits, -1, grid.symmetric

    def __call__(self, weight: Tensor, importance: Tensor | None = None) -> Grid:
        """The grid, whatever the weight."""
        return self.grid


@torch.no_grad()
def start_block(
    block: nn.Module,
    statistics: InputStatistics,
    hessians: Mapping[str, Hessian],
    settings: Settings,
    *,
    seed: int,
    grids: dict[str, Grid],
) -> nn.Module:
    """A copy of a float block whose linear layers are to be reconstructed.

    Args:
        block: the float block; activation channels already scaled.
        statistics: of its inputs in the float model.
        hessians: of its inputs behind the quantized blocks; for ``start="gptq"``.
        settings: see Settings.
        seed: of the draw of A1.
        grids: start scales by layer name; filled where one is missing.

    Returns:
        the copy, its parameters frozen but for those of the ``CBQLinear`` layers.
    """
    student = copy.deepcopy(block).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    rule = GridRule(settings.bits, settings.group, settings.symmetric, "portable", settings.search)
    for name, linear in block_linears(student).items():
        weight = linear.weight.detach().float()
        if settings.truncate:
            weight, _ = truncate_weight(weight, RULES[settings.cfp])
        if name not in grids:
            grids[name] = rule(weight, statistics.squares[name])
        grid, rounded = grids[name], weight
        if settings.start == "gptq":
            rounded = _compensated(weight, hessians[name].value, grid, settings)
        layer = CBQLinear(
            linear,
            Start(rounded, grid, settings.start),
            rank=settings.rank,
            act_bits=settings.act_bits,
            generator=generator,
            refloor=settings.refloor,
        )
        parent, _, child = name.rpartition(".")
        setattr(student.get_submodule(parent), child, layer)
    if settings.act_bits < 16 and settings.attention:
        quantize_attention(student, settings.act_bits)
    return student


def _compensated(weight: Tensor, hessian: Tensor, grid: Grid, settings: Settings) -> Tensor:
    """The columns that GPTQ holds at the moment it rounds each, on this very grid."""
    if grid.group == weight.shape[1]:
        rule = FixedGrid(grid)
        return gptq(weight, hessian, rule, damping=settings.damping).compensated
    rule = GroupedGrid(grid)
    return gptq(weight, hessian, rule, damping=settings.damping, static_groups=True).compensated


class GroupedGrid(FixedGrid):
    """A fixed grid with several groups a row."""

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self.group = grid.group
