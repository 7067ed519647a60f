"""Window attention of LIPT's dense and sparse groups: one head, keys = queries, no scaling.

The channels of the input are split into groups, one for each :class:`~.nvsm_layout.Group`. Within
a group the first half are queries and keys q, the second half values v:

    A = softmax(q q^T)        y = A v        over the w^2 pixels of a window

A group may be rolled and masked before it is cut into windows (``nvsm_layout``). The maps A can be
kept and applied to other values, of another projection of the features: :func:`nvsm_shared`.

Rolling, masking and cutting are a fixed choice of pixels. ``fast`` does all three for all groups
by one gather of pixels, whose index is cached, and goes back by another one; for that the channels
of a pixel must lie side by side (channels_last memory), other inputs are copied once. Without
gradients a CPU works on few windows at a time, whose maps stay in its cache.

Everything is worked out in float32 (float64 for float64 inputs), also under autocast.

Source: LIPT (IEEE TIP 2025), "non-volatile sparse masking self-attention"; lipt sheet 3.3.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from papers_shared.kernels.nvsm_layout import Group, Rows, rows_of

BACKENDS = ("auto", "reference", "fast", "triton")


@dataclass(frozen=True)
class Shared:
    """What a first attention keeps for those that reuse its maps.

    Attributes:
        backend: that made it.
        parts: the maps, (groups, batch * windows, w^2, w^2) for every run of groups of one window;
            for ``triton`` the queries of each group, (batch, d, H, W), from which the maps follow.
        groups: that it was made with.
    """

    backend: str
    parts: tuple[Tensor, ...]
    groups: tuple[Group, ...]

    def maps(self) -> list[Tensor]:
        """The softmax maps of each group, (batch * windows, w^2, w^2)."""
        if self.backend != "triton":
            return [maps for part in self.parts for maps in part]
        pairs = zip(self.parts, self.groups, strict=True)
        return [_softmax(_into_windows(_wide(q), (group,))[0]) for q, group in pairs]


def nvsm_attention(
    x: Tensor, groups: Sequence[Group], *, share: bool = False, backend: str = "auto"
) -> tuple[Tensor, Shared | None]:
    """Attention within windows, each group of channels by its own rule.

    Args:
        x: (B, groups * 2d, H, W) floats, each group q and then v; fastest in channels_last memory.
            H and W are multiples of all windows.
        groups: how each group is cut.
        share: whether the maps are wanted.
        backend: ``reference`` (roll, pad, unfold, mask and back), ``fast`` (gathers; then batched
            products, or torch's fused attention where that suits; any device), ``triton`` (one
            kernel; it keeps queries in place of maps and its backward pass is that of ``fast``) or
            ``auto``: ``triton`` for CUDA tensors where it can run and no gradient is needed,
            ``fast`` otherwise.

    Returns:
        (B, groups * d, H, W) in ``x``'s dtype, and what :func:`nvsm_shared` takes (None unless
        ``share``). Differentiable.

    Raises:
        ValueError: shapes, dtypes or a backend that do not fit.
        RuntimeError: ``triton`` was asked for and cannot run here.

    Source: this module's docstring.
    """
    groups = tuple(groups)
    _check(x, groups, halves=2)
    name = _backend(backend, x, groups)
    with _no_autocast(x.device):
        if name == "triton":
            from papers_shared.kernels import nvsm_triton

            y, queries = nvsm_triton.attention(x, groups)
            return y, Shared(name, queries, groups) if share else None
        made, kept = [], []
        for run, given in _runs(_wide(x), groups, fuse=name == "fast"):
            y, maps = _attend(name, given, run, share)
            made.append(y)
            kept.append(maps)
        joined = made[0] if len(made) == 1 else torch.cat(made, 1)
        shared = Shared(name, tuple(m for m in kept if m is not None), groups) if share else None
        return joined.to(x.dtype), shared


def nvsm_shared(v: Tensor, shared: Shared, groups: Sequence[Group]) -> Tensor:
    """Apply the maps of an earlier attention to other values, by the same backend.

    Args:
        v: (B, groups * d, H, W) floats, of the size that the maps were made for.
        shared: from :func:`nvsm_attention`.
        groups: how each group is cut now; the windows are those of ``shared``. The authors' code
            takes values from unmasked windows even where the maps are of masked ones.

    Returns:
        (B, groups * d, H, W) in ``v``'s dtype. Differentiable, in the maps too.

    Raises:
        ValueError: shapes, dtypes or windows that do not fit the maps.
    """
    groups = tuple(groups)
    _check(v, groups, halves=1)
    if [g.window for g in groups] != [g.window for g in shared.groups]:
        raise ValueError("the groups have other windows than those the maps were made with")
    with _no_autocast(v.device):
        if shared.backend == "triton":
            from papers_shared.kernels import nvsm_triton

            return nvsm_triton.shared(v, shared.parts, groups, shared.groups)
        made = []
        runs = _runs(_wide(v), groups, fuse=shared.backend == "fast")
        for (run, given), maps in zip(runs, shared.parts, strict=True):
            w = run[0].window
            if maps.shape[1] != v.shape[0] * (v.shape[2] // w) * (v.shape[3] // w):
                raise ValueError(
                    f"values of shape {tuple(v.shape)} where the maps are of {maps.shape[1]} "
                    f"windows of {w}x{w}; expected the size that the maps were made for"
                )
            into, out = _ways(shared.backend)
            made.append(out(maps @ into(given, run), run, v.shape))
        joined = made[0] if len(made) == 1 else torch.cat(made, 1)
        return joined.to(v.dtype)


def _attend(
    name: str, x: Tensor, groups: tuple[Group, ...], share: bool
) -> tuple[Tensor, Tensor | None]:
    if name == "fast" and _can_write_in_place(x):
        y, maps = _attend_in_pieces(x, groups, share)
        return _out_of_windows(y, groups, x.shape), maps
    into, out = _ways(name)
    q, v = into(x, groups).chunk(2, dim=-1)
    if name == "fast" and not share:
        keys, values = (t.flatten(0, 1).unsqueeze(1) for t in (q, v))
        y = F.scaled_dot_product_attention(keys, keys, values, scale=1.0).view(v.shape)
        return out(y, groups, x.shape), None
    maps = _softmax(q)
    return out(maps @ v, groups, x.shape), maps if share else None


def from_queries(
    made_for: Sequence[Group],
    groups: Sequence[Group],
    queries: Sequence[Tensor],
    values: Sequence[Tensor],
) -> Tensor:
    """Values under the maps of queries, each (B, d, H, W) a group; differentiable in both."""
    made = []
    for of_q, of_v, q, v in zip(made_for, groups, queries, values, strict=True):
        y = _softmax(_into_windows(q, (of_q,))) @ _into_windows(v, (of_v,))
        made.append(_out_of_windows(y, (of_v,), v.shape))
    return torch.cat(made, 1)


def _softmax(q: Tensor) -> Tensor:
    return (q @ q.transpose(-1, -2)).softmax(-1)


def _ways(name: str) -> tuple[Any, Any]:
    """Into windows, (groups, batch * windows, w^2, channels), and back to a map."""
    if name == "fast":
        return _into_windows, _out_of_windows
    return _into_windows_reference, _out_of_windows_reference


def _runs(
    x: Tensor, groups: tuple[Group, ...], *, fuse: bool
) -> list[tuple[tuple[Group, ...], Tensor]]:
    """Groups that are worked on together, those of one window, and their channels."""
    runs: list[tuple[Group, ...]] = [(group,) for group in groups]
    if fuse:
        runs = [tuple(run) for _, run in itertools.groupby(groups, key=lambda g: g.window)]
    width = x.shape[1] // len(groups)
    return list(zip(runs, x.split([width * len(run) for run in runs], dim=1), strict=True))


# ---- fast: gathers

_PIECE = 2**19  # bytes of maps that a thread works on at a time: half of a usual L2 cache


def _can_write_in_place(x: Tensor) -> bool:
    watched = torch.compiler.is_compiling() or torch.jit.is_tracing()
    gradients = torch.is_grad_enabled() and x.requires_grad
    return x.device.type == "cpu" and not watched and not gradients


def _attend_in_pieces(
    x: Tensor, groups: tuple[Group, ...], share: bool
) -> tuple[Tensor, Tensor | None]:
    """The attention of all windows, few at a time; no gradients."""
    batch, channels, height, width = x.shape
    count, n = len(groups), groups[0].window ** 2
    forth, _, _ = rows_of(groups, batch, height, width, x.device)
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels // count)
    windows = len(rows) // n
    step = max(1, torch.get_num_threads() * _PIECE // (n * n * x.element_size()))
    y = rows.new_empty(windows, n, rows.shape[1] // 2)
    maps = rows.new_empty(windows if share else min(step, windows), n, n)
    for first in range(0, windows, step):
        last = min(first + step, windows)
        q, v = (
            _take(rows, forth, slice(first * n, last * n)).view(-1, n, rows.shape[1]).chunk(2, -1)
        )
        a = maps[first:last] if share else maps[: last - first]
        torch.bmm(q, q.transpose(1, 2), out=a)
        torch.softmax(a, -1, out=a)
        torch.bmm(a, v, out=y[first:last])
    return y, maps.view(count, -1, n, n) if share else None


def _take(rows: Tensor, forth: Rows, part: slice = slice(None)) -> Tensor:
    taken = rows.index_select(0, forth.index[part])
    return taken if forth.zero is None else taken.masked_fill(forth.zero[part, None], 0)


def _into_windows(x: Tensor, groups: tuple[Group, ...]) -> Tensor:
    batch, channels, height, width = x.shape
    count, w = len(groups), groups[0].window
    forth, _, _ = rows_of(groups, batch, height, width, x.device)
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels // count)
    if forth.inverse is not None:
        taken = _Permute.apply(rows, forth.index, forth.inverse)
    else:
        taken = _take(rows, forth)
    return taken.view(count, -1, w * w, channels // count)


def _out_of_windows(y: Tensor, groups: tuple[Group, ...], shape: Sequence[int]) -> Tensor:
    batch, _, height, width = shape
    _, index, inverse = rows_of(groups, batch, height, width, y.device)
    rows = _Permute.apply(y.reshape(-1, y.shape[-1]), index, inverse)
    return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)


class _Permute(torch.autograd.Function):
    """A permutation of rows, whose gradient is gathered too: torch would add row by row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(index, inverse)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        index, inverse = ctx.saved_tensors
        return _Permute.apply(grad, inverse, index), None, None


# ---- reference: roll, pad, unfold, mask


def _into_windows_reference(x: Tensor, groups: tuple[Group, ...]) -> Tensor:
    (group,) = groups
    w = group.window
    batch, channels, height, width = x.shape
    if group.shift:
        x = torch.roll(x, (-group.shift, -group.shift), (2, 3))
    if group.positions is not None:
        chosen = torch.tensor(group.positions, device=x.device)
        for dim in (2, 3):
            below = {
                "sparse": x.narrow(dim, 0, w),
                "zero_pad": torch.zeros_like(x.narrow(dim, 0, w)),
                "ref_pad": x.narrow(dim, x.shape[dim] - w, w),
            }
            x = torch.cat([x, below[group.pad_type]], dim)
        cut = x.unfold(2, 2 * w, w).unfold(3, 2 * w, w)
        windows = cut[..., chosen[:, None], chosen].permute(0, 2, 3, 4, 5, 1)
    else:
        cut = x.view(batch, channels, height // w, w, width // w, w)
        windows = cut.permute(0, 2, 4, 3, 5, 1)
    return windows.reshape(1, -1, w * w, channels)


def _out_of_windows_reference(y: Tensor, groups: tuple[Group, ...], shape: Sequence[int]) -> Tensor:
    (group,) = groups
    w = group.window
    batch, _, height, width = shape
    cut = y.view(batch, height // w, width // w, w, w, -1)
    x = cut.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, height, width)
    if group.restore and group.positions is not None:
        for dim, length in ((2, height), (3, width)):
            windows = torch.arange(0, length, w)[:, None]
            rows = ((windows + torch.tensor(group.positions)) % length).flatten()
            x = x.index_select(dim, torch.argsort(rows).to(x.device))
    if group.shift:
        x = torch.roll(x, (group.shift, group.shift), (2, 3))
    return x


# ---- what fits, and which backend


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    if device.type == "meta":  # has no autocast
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _backend(backend: str, x: Tensor, groups: tuple[Group, ...]) -> str:
    """The backend that runs: reference, fast or triton."""
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: expected {', '.join(BACKENDS)}")
    if backend in ("reference", "fast"):
        return backend
    if isinstance(x.shape[2], torch.SymInt):  # export: of symbols no index can be made
        return "reference"
    gradients = torch.is_grad_enabled() and x.requires_grad
    if backend == "auto" and (x.device.type != "cuda" or gradients):
        return "fast"
    if importlib.util.find_spec("triton") is None:
        reason: str | None = "triton is not installed"
    else:
        from papers_shared.kernels import nvsm_triton

        reason = nvsm_triton.unavailable(x, groups)
    if reason is not None and backend == "triton":
        raise RuntimeError(f"backend='triton' cannot run: {reason}")
    return "fast" if reason is not None else "triton"


def _check(x: Tensor, groups: tuple[Group, ...], *, halves: int) -> None:
    if not groups:
        raise ValueError("no groups: expected at least one")
    parts = halves * len(groups)
    if x.dim() != 4 or not x.is_floating_point() or x.shape[1] % parts or not x.numel():
        raise ValueError(
            f"input of shape {tuple(x.shape)} and {x.dtype}: expected floats of shape (batch, "
            f"channels, height, width), none empty, with channels a multiple of {parts}"
        )
    for group in groups:
        if x.shape[2] % group.window or x.shape[3] % group.window:
            raise ValueError(
                f"input of {x.shape[2]}x{x.shape[3]}: height and width must be multiples of the "
                f"window {group.window}; pad the input"
            )
