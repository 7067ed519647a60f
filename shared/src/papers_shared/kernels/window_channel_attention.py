"""Windowed channel attention: in each window, channels attend to channels (FCSA of IPT-V2).

The map is cut into w x w windows; in each, for each head of c channels, with positions p:

    q' = q a / |q a|,  k' = k a / |k a|,  y = softmax(temperature q' k'^T) v     (c x c matrices)

with a learned vector a over the w^2 positions of the head. A second set of windows begins half a
window inside the map, with parameters of its own, and is blended in by learned scores, maps of
w x w repeated over the windows:

    y = (y1 m1 + y2 m2) / (m1 + m2)     inside; y1 in the frame of w/2 that the second set lacks

The fused form takes one pass over the pixels a branch, from the map (of the second branch: a view
of the same map at an offset) to windows in which the channels lie together, multiplied by a on the
way. Products are divided by the norms afterwards, c x c numbers instead of two maps. The share
m2 / (m1 + m2) depends on the position in the window alone, and as the softmax mixes channels, not
positions, v is multiplied by it in that same pass.

Everything is worked out in float32 (float64 for float64 inputs), also under autocast.

Source: IPT-V2 (arXiv 2404.00633), "focal context self-attention"; ipt_v2 sheet 3.1.
"""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from papers_shared.kernels.layout import memory_format

Branch = tuple[Tensor, Tensor, Tensor]
EPS = 1e-12  # torch's, of F.normalize


def window_channel_attention(
    qkv: Tensor, base: Branch, shifted: Branch | None, *, backend: str = "auto"
) -> Tensor:
    """Channel attention in windows, and in windows shifted by half their side, blended.

    Args:
        qkv: (B, 3 C, H, W) floats, channels_last for speed: q, k, v of C channels each, heads of
            C / h neighbours.
        base: (temperature (h, 1, 1), affine (h, 1, w^2), mask (1, h, w, w)) of the windows.
        shifted: the same of the shifted windows; None leaves them out. They are left out as well
            where H or W is a single window.
        backend: ``reference`` (the definition), ``fused`` (any device), ``triton`` (one program a
            window and head; its backward pass is that of ``fused``) or ``auto``: ``triton`` for
            CUDA tensors where it can run and no gradient is needed, ``fused`` otherwise.

    Returns:
        (B, C, H, W) in ``qkv``'s dtype and memory format; differentiable in all arguments.

    Raises:
        ValueError: shapes, dtypes or a backend that do not fit.
        RuntimeError: ``triton`` was asked for and cannot run here.

    Source: this module's docstring.
    """
    window = _check(qkv, base, shifted)
    if min(qkv.shape[2:]) == window:
        shifted = None
    name = _backend(backend, qkv, [qkv, *base, *(shifted or ())], window)
    kind = torch.promote_types(qkv.dtype, torch.float32)
    base = _to(base, kind)
    shifted = None if shifted is None else _to(shifted, kind)
    with _no_autocast(qkv.device):
        if name == "triton":
            from papers_shared.kernels import window_channel_attention_triton as triton

            return triton.attend(qkv, base, shifted)
        form = {"fused": fused_form, "any size": any_size}.get(name, _reference)
        y = form(qkv.to(kind), base, shifted).to(qkv.dtype)
        return y.contiguous(memory_format=memory_format(qkv))


def share(base: Branch, shifted: Branch) -> Tensor:
    """m2 / (m1 + m2) at the positions of a shifted window: (h, w, w)."""
    half = base[2].shape[-1] // 2
    return (shifted[2] / (shifted[2] + base[2].roll((-half, -half), (2, 3))))[0]


def _reference(qkv: Tensor, base: Branch, shifted: Branch | None) -> Tensor:
    """The definition."""
    y, score = _branch(qkv, base)
    if shifted is None:
        return y
    half = base[2].shape[-1] // 2
    inside = qkv[:, :, half:-half, half:-half]
    y2, score2 = (F.pad(t, [half] * 4) for t in _branch(inside, shifted))
    return (y * score + y2 * score2) / (score + score2)


def any_size(qkv: Tensor, base: Branch, shifted: Branch | None) -> Tensor:
    """The definition in operators that need no other way for a single window.

    The shifted windows also cover the border, around which zeros are laid; what they give in the
    frame is not used.
    """
    y, score = _branch(qkv, base)
    if shifted is None:
        return y
    half = base[2].shape[-1] // 2
    around = _branch(F.pad(qkv, [half] * 4), shifted)
    y2, score2 = (t[:, :, half:-half, half:-half] for t in around)
    rows, columns = (_inside(side, half, qkv.device) for side in qkv.shape[2:])
    score2 = score2 * (rows[:, None] & columns)
    return (y * score + y2 * score2) / (score + score2)


def _inside(side: int, frame: int, device: torch.device) -> Tensor:
    position = torch.arange(side, device=device)
    return (position >= frame) & (position < side - frame)


def _branch(qkv: Tensor, branch: Branch) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) result and score of one set of windows."""
    temperature, affine, mask = branch
    batch, triple, height, width = qkv.shape
    heads, window = mask.shape[1:3]
    channels, rows, columns = triple // 3, height // window, width // window
    split = qkv.reshape(batch, 3, heads, channels // heads, rows, window, columns, window)
    q, k, v = split.permute(1, 0, 4, 6, 2, 3, 5, 7).flatten(-2)
    q, k = F.normalize(q * affine, dim=-1), F.normalize(k * affine, dim=-1)
    y = (temperature * (q @ k.mT)).softmax(dim=-1) @ v
    y = y.unflatten(-1, (window, window)).permute(0, 3, 4, 1, 5, 2, 6)
    score = mask.repeat(1, 1, rows, columns).repeat_interleave(channels // heads, dim=1)
    return y.reshape(batch, channels, height, width), score


def fused_form(qkv: Tensor, base: Branch, shifted: Branch | None) -> Tensor:
    """See this module's docstring; the result is channels_last."""
    in_place = not _wants_gradients([qkv, *base, *(shifted or ())])
    x = qkv.permute(0, 2, 3, 1).contiguous()  # a view where qkv is channels_last
    batch, height, width, triple = x.shape
    heads, window = base[2].shape[1:3]
    if shifted is None:
        heads_out = _attend(x, base, None, in_place)
        return _join(heads_out, None, in_place).view(batch, height, width, -1).permute(0, 3, 1, 2)
    half, ratio = window // 2, share(base, shifted)
    rest = ratio.new_ones(1).expand(heads, height, width)
    tiles = ratio.repeat(1, height // window - 1, width // window - 1)
    rest = rest - F.pad(tiles, [half] * 4)
    rest = rest.view(heads, height // window, window, width // window, window, 1)
    y = _join(_attend(x, base, None, in_place), rest, in_place)
    y = y.view(batch, height, width, triple // 3)
    inside = _attend(x[:, half:-half, half:-half], shifted, ratio, in_place)
    if in_place:
        view = _windows(y[:, half:-half, half:-half], window).unflatten(-1, (heads, -1))
        for head, value in enumerate(inside):
            view[..., head, :].add_(value)
    else:
        added = _join(inside, None, in_place)
        added = added.view(batch, height - window, width - window, -1)
        y = y + F.pad(added, (0, 0, half, half, half, half))
    return y.permute(0, 3, 1, 2)


def _windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) seen as (B, H / w, W / w, w, w, C)."""
    shape = (x.shape[1] // window, window), (x.shape[2] // window, window)
    return x.unflatten(2, shape[1]).unflatten(1, shape[0]).transpose(2, 3)


def _attend(x: Tensor, branch: Branch, ratio: Tensor | None, in_place: bool) -> list[Tensor]:
    """One branch on (B, H, W, 3 C): for each head (B, H / w, W / w, w, w, c)."""
    temperature, affine, mask = branch
    heads, window = mask.shape[1:3]
    channels = x.shape[3] // 3
    width = channels // heads
    weights = torch.stack([affine[:, 0], affine[:, 0], torch.ones_like(affine[:, 0])])
    if ratio is not None:
        weights = torch.stack([affine[:, 0], affine[:, 0], ratio.flatten(1)])
    # (3, h, w^2) to one number for each channel of each position
    weights = weights.permute(2, 0, 1).repeat_interleave(width, dim=2).view(window, window, -1)
    split = _windows(x, window)
    if in_place:
        packed = torch.mul(split, weights, out=x.new_empty(split.shape))
    else:
        packed = split.contiguous() * weights
    packed = packed.view(-1, window**2, 3 * channels)
    q_and_k, _ = packed.split([2 * channels, channels], dim=2)
    factors = q_and_k.square().sum(1).sqrt().clamp_min(EPS).reciprocal()
    q_factor, k_factor = factors.view(-1, 2, heads, width).unbind(1)
    # Heads by split and unbind, whose backward pass is one copy; a slice's fills up with zeros.
    heads_of_qkv = packed.split(width, dim=2)
    rows = (q_factor * temperature[:, 0])[..., None].unbind(1)
    columns = k_factor[:, :, None].unbind(1)
    made = []
    for head in range(heads):
        q, k, v = heads_of_qkv[head::heads]
        logits = torch.bmm(q.mT, k)
        if in_place:
            logits.mul_(rows[head]).mul_(columns[head])
        else:
            logits = logits * rows[head] * columns[head]
        y = torch.bmm(v, logits.softmax(dim=-1).mT)
        made.append(y.view(*split.shape[:-1], width))
    return made


def _join(heads: list[Tensor], factor: Tensor | None, in_place: bool) -> Tensor:
    """Heads back to (B, rows, w, columns, w, h, c), multiplied by (h, rows, w, columns, w, 1)."""
    parts = [y.transpose(2, 3) for y in heads]
    if not in_place:
        y = torch.stack(parts, dim=-2)
        return y if factor is None else y * factor.movedim(0, -2)
    shape = (*parts[0].shape[:-1], len(parts), parts[0].shape[-1])
    y = torch.empty(shape, dtype=parts[0].dtype, device=parts[0].device)
    for head, part in enumerate(parts):
        if factor is None:
            y[..., head, :].copy_(part)
        else:
            torch.mul(part, factor[head], out=y[..., head, :])
    return y


def _to(branch: Branch, kind: torch.dtype) -> Branch:
    temperature, affine, mask = branch
    return temperature.to(kind), affine.to(kind), mask.to(kind)


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    if device.type == "meta":  # has no autocast
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _wants_gradients(tensors: list[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _backend(backend: str, qkv: Tensor, tensors: list[Tensor], window: int) -> str:
    """The form that runs: reference, fused, triton, or that of symbolic sizes."""
    if backend in ("reference", "fused"):
        return backend
    if isinstance(qkv.shape[2], torch.SymInt):  # a graph that is exported serves all sizes
        return "any size"
    if backend == "auto" and (qkv.device.type != "cuda" or _wants_gradients(tensors)):
        return "fused"
    if backend not in ("auto", "triton"):
        raise ValueError(f"backend={backend!r}: expected auto, reference, fused or triton")
    if importlib.util.find_spec("triton") is None:
        reason: str | None = "triton is not installed"
    else:
        from papers_shared.kernels import window_channel_attention_triton as triton

        reason = triton.unavailable(qkv, len(tensors[1]), window)
    if reason is not None and backend == "triton":
        raise RuntimeError(f"backend='triton' cannot run: {reason}")
    return "fused" if reason is not None else "triton"


def _check(qkv: Tensor, base: Branch, shifted: Branch | None) -> int:
    """The side of a window."""
    if base[2].dim() != 4:
        raise ValueError(f"mask of shape {tuple(base[2].shape)}: expected (1, heads, w, w)")
    heads, window = base[2].shape[1:3]
    shapes = [(heads, 1, 1), (heads, 1, window**2), (1, heads, window, window)]
    for branch in (base, shifted):
        if branch is not None and [tuple(t.shape) for t in branch] != shapes:
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
