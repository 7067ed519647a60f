"""Shifted-window transformer stages inside a convolutional U-net, as ResShift and DiT-SR use them.

A stage works on *windowed tokens* (B, windows, tokens, C): windows and the pixels of a window are
in row-major order. Normalisation, linear layers and attention without a shift then need no
permutation; a shifted block gathers the tokens into the shifted windows and back. Parameters keep
the names and shapes of the authors' checkpoints.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

F_ = TypeVar("F_", bound=Callable[..., Any])
Mask = Literal["released", "swin"]
MASKED = -100.0  # what the authors add to a score that is to vanish


@dataclass(frozen=True)
class Windows:
    """How an (H, W) feature map is cut into windows.

    Attributes:
        height, width: of the map; multiples of ``size``.
        size: side of a window.
    """

    height: int
    width: int
    size: int

    def __post_init__(self) -> None:
        if self.height % self.size or self.width % self.size:
            raise ValueError(
                f"a feature map of {self.height}x{self.width} does not divide into windows of "
                f"{self.size}x{self.size}; pad the input to a multiple of the network's alignment"
            )

    @property
    def count(self) -> int:
        """Windows of a map."""
        return self.height * self.width // self.size**2

    def split(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, windows, tokens, C)."""
        b, h, w, c = x.shape
        s = self.size
        x = x.reshape(b, h // s, s, w // s, s, c).transpose(2, 3)
        return x.reshape(b, self.count, s * s, c)

    def join(self, tokens: Tensor) -> Tensor:
        """(B, windows, tokens, C) -> (B, H, W, C)."""
        b, _, _, c = tokens.shape
        s = self.size
        x = tokens.reshape(b, self.height // s, self.width // s, s, s, c).transpose(2, 3)
        return x.reshape(b, self.height, self.width, c)


def _cached(function: F_) -> F_:
    """Cache tensors that a function makes, usable with and without gradients.

    Few are kept: every size of a picture has its own, and a large map's mask takes 64 MB.
    """

    @functools.lru_cache(maxsize=16)
    @functools.wraps(function)
    def made(*args: Any) -> Any:
        with torch.inference_mode(False), torch.device("cpu"):
            return function(*args)

    return cast(F_, made)


@_cached
def _shifted(windows: Windows, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices of all tokens in the order of the shifted windows, and back: (windows x tokens,)."""
    pixels = torch.arange(windows.height * windows.width)
    order = windows.split(pixels.reshape(1, windows.height, windows.width, 1)).flatten()
    rolled = pixels.reshape(windows.height, windows.width).roll((-shift, -shift), (0, 1))
    shifted = windows.split(rolled[None, ..., None]).flatten()
    place = torch.empty_like(order)
    place[order] = pixels  # where a pixel stands among the windowed tokens
    there = place[shifted]
    back = torch.empty_like(there)
    back[there] = pixels
    return there.to(device), back.to(device)


@_cached
def shift_mask(
    windows: Windows, shift: int, kind: Mask, device: torch.device | str = "cpu"
) -> Tensor:
    """What is added to the scores of shifted windows, so that wrapped-around tokens part.

    Args:
        windows: how the map is cut.
        shift: of the windows, in pixels.
        kind: ``swin``: tokens that are not neighbours in the map never see each other.
            ``released``: what ResShift's and DiT-SR's code computes, which the checkpoints need:
            only the last row of windows is masked, and there columns are parted, rows never.
        device: where it is kept for the next call.

    Returns:
        (windows, tokens, tokens), 0 or -100.

    Source: dit_sr sheet 3.4; Swin Transformer, section 3.2.
    """
    size = windows.size
    if kind == "released":
        right = (torch.arange(size) >= size - shift).repeat(size)
        apart = right[:, None] != right[None, :]
        mask = torch.zeros(windows.count, size * size, size * size)
        mask[-(windows.width // size) :] = apart * MASKED
        return mask.to(device)
    rows, columns = (
        (torch.arange(n) >= n - size).long() + (torch.arange(n) >= n - shift).long()
        for n in (windows.height, windows.width)
    )
    region = windows.split((3 * rows[:, None] + columns)[None, ..., None])[0, ..., 0]
    return ((region[:, :, None] != region[:, None, :]) * MASKED).to(device)


def relative_position_index(size: int) -> Tensor:
    """Row of the bias table for each pair of a window's tokens: int64 (tokens, tokens).

    Source: (dy + w - 1) (2 w - 1) + (dx + w - 1), dit_sr sheet 3.4.
    """
    y, x = (c.flatten() for c in torch.meshgrid(*[torch.arange(size)] * 2, indexing="ij"))
    dy, dx = y[:, None] - y[None, :], x[:, None] - x[None, :]
    return (dy + size - 1) * (2 * size - 1) + dx + size - 1


class TokenLinear(nn.Linear):
    """A linear layer on tokens (B, windows, N, C)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return _per_token(tokens, self.weight, self.bias, convolve=False)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution on tokens (B, windows, N, C), which are a channels-last picture."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return _per_token(tokens, self.weight, self.bias, convolve=True)


def _per_token(tokens: Tensor, weight: Tensor, bias: Tensor | None, *, convolve: bool) -> Tensor:
    """Both layers: a 1x1 convolution or a matrix product, on a CPU whichever is faster.

    oneDNN's convolution adds the bias as it writes, where the product needs a pass of its own;
    torch takes oneDNN's if there are several threads, and a slow one if there is one.
    """
    if tokens.device.type == "cpu" and not torch.is_grad_enabled():
        convolve = torch.get_num_threads() > 1
    if not convolve:
        return F.linear(tokens, weight.flatten(1), bias)
    picture = F.conv2d(tokens.permute(0, 3, 1, 2), weight.view(*weight.shape[:2], 1, 1), bias)
    return picture.permute(0, 2, 3, 1)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a learned relative position bias."""

    def __init__(self, dim: int, *, size: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{dim} channels do not divide into {num_heads} heads")
        self.num_heads = num_heads
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * size - 1) ** 2, num_heads)
        )
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(size))
        self.qkv = TokenLinear(dim, 3 * dim)
        self.proj = TokenLinear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            tokens: (B, windows, N, C).
            mask: (windows, N, N), or (1, N, N) for all windows, added to the scores.

        Returns:
            (B, windows, N, C).
        """
        b, windows, n, c = tokens.shape
        index = self.relative_position_index
        assert isinstance(index, Tensor)
        bias = self.relative_position_bias_table[index.flatten()].reshape(n, n, -1)
        bias = bias.permute(2, 0, 1)[None].to(tokens.dtype)
        if mask is not None:
            bias = bias + mask[:, None].to(bias)
            bias = bias.repeat(b, 1, 1, 1) if b > 1 and len(mask) > 1 else bias
        qkv = self.qkv(tokens).reshape(b * windows, n, 3, self.num_heads, c // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj_drop(self.proj(out.transpose(1, 2).reshape(b, windows, n, c)))


class Mlp(nn.Module):
    """Two 1x1 convolutions with an exact GELU between them, on tokens."""

    def __init__(self, dim: int, hidden: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Pointwise(dim, hidden)
        self.fc2 = Pointwise(hidden, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, windows, N, C) -> (B, windows, N, C)."""
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(tokens)))))


def group_norm(norm: nn.GroupNorm, tokens: Tensor) -> Tensor:
    """GroupNorm over windowed tokens (B, windows, N, C), in float32, cast back."""
    x = tokens.permute(0, 3, 1, 2).float()  # a channels-last view
    x = F.group_norm(x, norm.num_groups, norm.weight.float(), norm.bias.float(), norm.eps)
    return x.permute(0, 2, 3, 1).to(tokens.dtype)


class SwinBlock(nn.Module):
    """``x = x + attention(norm1(x)); x = x + mlp(norm2(x))`` on windowed tokens.

    Args:
        dim: channels C.
        side: nominal side of the feature map (at the training size). Where it is not larger than
            the window, the window is the whole map and never shifts, at any run-time size.
        window_size: side of a window.
        shift: True: windows are shifted by half a window.
        num_heads, mlp_ratio, dropout: of attention and MLP.
        mask: see ``shift_mask``.
        norm_groups: of both group norms.
    """

    def __init__(
        self,
        dim: int,
        *,
        side: int,
        window_size: int,
        shift: bool,
        num_heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        mask: Mask = "released",
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        self.window_size = min(window_size, side)
        self.shift = self.window_size // 2 if shift and side > window_size else 0
        self.mask: Mask = mask
        self.norm1 = nn.GroupNorm(norm_groups, dim)
        self.attn = WindowAttention(
            dim, size=self.window_size, num_heads=num_heads, dropout=dropout
        )
        self.norm2 = nn.GroupNorm(norm_groups, dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dropout=dropout)
        if self.shift:
            nominal = shift_mask(Windows(side, side, self.window_size), self.shift, mask)
            # Only for the checkpoints' sake: the mask in use is that of the run-time size.
            self.register_buffer("attn_mask", nominal.clone())

    def attend(self, y: Tensor, windows: Windows) -> Tensor:
        """Attention of normalised tokens (B, windows, N, C), shifted where the block is."""
        if not self.shift:
            return self.attn(y)
        there, back = _shifted(windows, self.shift, y.device)
        shifted = y.flatten(1, 2).index_select(1, there).view_as(y)
        if self.mask == "released":  # the last row of windows has one mask, the others go without
            alone = Windows(windows.size, windows.size, windows.size)
            mask = shift_mask(alone, self.shift, self.mask, y.device)
            free = windows.count - windows.width // windows.size
            masked = self.attn(shifted[:, free:], mask)
            attended = torch.cat([self.attn(shifted[:, :free]), masked], dim=1) if free else masked
        else:
            mask = shift_mask(windows, self.shift, self.mask, y.device)
            attended = self.attn(shifted, mask)
        return attended.flatten(1, 2).index_select(1, back).view_as(y)

    def forward(self, tokens: Tensor, emb: Tensor, windows: Windows) -> Tensor:
        """One block; ``emb`` (the time embedding) is for subclasses.

        Args:
            tokens: (B, windows, N, C).
            emb: (B, E).
            windows: how the map is cut.
        """
        tokens = tokens + self.attend(group_norm(self.norm1, tokens), windows)
        return tokens + self.mlp(group_norm(self.norm2, tokens))


class _Embed(nn.Module):
    """Holds the layer under the authors' name ``proj``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = Pointwise(inputs, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.proj(tokens)


class SwinStage(nn.Module):
    """1x1 convolution in, blocks with alternating shift, 1x1 convolution out.

    Args:
        channels: of the feature map.
        dim: of the tokens.
        blocks: the blocks, all with one window size.
    """

    def __init__(self, channels: int, dim: int, blocks: list[SwinBlock]) -> None:
        super().__init__()
        self.patch_embed = _Embed(channels, dim)
        self.blocks = nn.ModuleList(blocks)
        self.patch_unembed = _Embed(dim, channels)
        self.window_size = blocks[0].window_size

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, C, H, W), (B, E) -> (B, C, H, W), channels last in memory.

        Raises:
            ValueError: H or W is no multiple of the window size.
        """
        windows = Windows(x.shape[2], x.shape[3], self.window_size)
        tokens = windows.split(self.patch_embed(x.permute(0, 2, 3, 1)))
        for block in self.blocks:
            tokens = block(tokens, emb, windows)
        return self.patch_unembed(windows.join(tokens)).permute(0, 3, 1, 2)
