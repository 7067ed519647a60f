"""Windowed channel attention: in each window, channels attend to channels (FCSA of IPT-V2).

The map is cut into w x w windows; in each, for each head of c channels, with positions p:

    q' = q a / |q a|,  k' = k a / |k a|,  y = softmax(temperature q' k'^T) v     (c x c matrices)

with a learned vector a over the w^2 positions of the head. A second set of windows begins half a
window inside the map, with parameters of its own, and is blended in by learned scores, maps of
w x w repeated over the windows:

    y = (y1 m1 + y2 m2) / (m1 + m2)     inside; y1 in the frame of w/2 that the second set lacks

What the fast form does otherwise: (q a)(k a)^T = (q a^2) k^T, so k is taken as it is; the products
are divided by the norms, c x c numbers instead of two maps; m2 / (m1 + m2) depends on the position
in the window alone, and as the softmax mixes channels, not positions, it can be multiplied into v;
the second set is a view of the same map at an offset.

Everything is worked out in float32 (float64 for float64 inputs), also under autocast.

Source: IPT-V2 (arXiv 2404.00633), "focal context self-attention"; ipt_v2 sheet 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

Branch = tuple[Tensor, Tensor, Tensor]
_EPS = 1e-12  # torch's, of F.normalize


def window_channel_attention(
    qkv: Tensor, base: Branch, shifted: Branch | None, *, backend: str = "auto"
) -> Tensor:
    """Channel attention in windows, and in windows shifted by half their side, blended.

    Args:
        qkv: (B, 3 C, H, W) floats: q, k, v of C channels each, heads of C / h neighbours.
        base: (temperature (h, 1, 1), affine (h, 1, w^2), mask (1, h, w, w)) of the windows.
        shifted: the same of the shifted windows; None leaves them out. They are left out as well
            where H or W is a single window.
        backend: ``reference`` (the definition), ``fused`` or ``auto``.

    Returns:
        (B, C, H, W) in ``qkv``'s dtype; differentiable in all arguments.

    Raises:
        ValueError: shapes, dtypes or a backend that do not fit.

    Source: this module's docstring.
    """
    if backend not in ("auto", "reference"):
        raise ValueError(f"backend={backend!r}: expected auto or reference")
    window = _check(qkv, base, shifted)
    if min(qkv.shape[2:]) == window:
        shifted = None
    with _no_autocast(qkv.device):
        kind = torch.promote_types(qkv.dtype, torch.float32)
        return _reference(qkv.to(kind), base, shifted, window).to(qkv.dtype)


def _reference(qkv: Tensor, base: Branch, shifted: Branch | None, window: int) -> Tensor:
    """The definition."""
    y, score = _branch(qkv, base, window)
    if shifted is None:
        return y
    half = window // 2
    inside = qkv[:, :, half:-half, half:-half]
    y2, score2 = (F.pad(t, [half] * 4) for t in _branch(inside, shifted, window))
    return (y * score + y2 * score2) / (score + score2)


def _branch(qkv: Tensor, branch: Branch, window: int) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) result and score of one set of windows."""
    temperature, affine, mask = (t.to(qkv.dtype) for t in branch)
    batch, triple, height, width = qkv.shape
    heads, rows, columns = len(temperature), height // window, width // window
    channels = triple // 3
    split = qkv.reshape(batch, 3, heads, channels // heads, rows, window, columns, window)
    q, k, v = split.permute(1, 0, 4, 6, 2, 3, 5, 7).flatten(-2)
    q, k = F.normalize(q * affine, dim=-1), F.normalize(k * affine, dim=-1)
    y = (temperature * (q @ k.mT)).softmax(dim=-1) @ v
    y = y.unflatten(-1, (window, window)).permute(0, 3, 4, 1, 5, 2, 6)
    score = mask.repeat(1, 1, rows, columns).repeat_interleave(channels // heads, dim=1)
    return y.reshape(batch, channels, height, width), score


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    if device.type == "meta":  # has no autocast
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _check(qkv: Tensor, base: Branch, shifted: Branch | None) -> int:
    """The side of a window."""
    heads, _, positions = base[1].shape
    window = round(positions**0.5)
    shapes: Sequence[tuple[int, ...]] = [
        (heads, 1, 1),
        (heads, 1, window**2),
        (1, heads, window, window),
    ]
    for branch in (base, shifted):
        if branch is not None and [tuple(t.shape) for t in branch] != list(shapes):
            given = [tuple(t.shape) for t in branch]
            raise ValueError(f"temperature, affine and mask of shapes {given}: expected {shapes}")
    if window % 2:
        raise ValueError(f"windows of {window}x{window}: expected an even side")
    if qkv.dim() != 4 or not qkv.is_floating_point() or qkv.shape[1] % (3 * heads):
        raise ValueError(
            f"qkv of shape {tuple(qkv.shape)} and {qkv.dtype}: expected floats of shape "
            f"(batch, 3 * channels, height, width), channels a multiple of the {heads} heads"
        )
    if qkv.shape[2] % window or qkv.shape[3] % window:
        raise ValueError(
            f"a map of {qkv.shape[2]}x{qkv.shape[3]} does not divide into windows of "
            f"{window}x{window}; pad it"
        )
    return window
