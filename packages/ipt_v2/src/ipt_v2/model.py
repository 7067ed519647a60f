"""The restoration network: U-shaped, four levels of FG blocks, sizes of our own.

The paper's sizes could not be had and its authors published no restoration code. The modules are
theirs (``attention``, ``feedforward``); the wiring around them is Restormer's, as the sheet chose,
and so are the sizes in ``VARIANTS``. None of it may be presented as the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipt_v2.attention import FCSA, GGSA, MDTA
from ipt_v2.feedforward import RepLeFFN
from papers_shared.diffusion.udit_unet import PatchEmbed, Resample
from papers_shared.inference.tiles import pad_to_multiple

Attention = Literal["fcsa", "fcsa_unshifted", "ggsa", "mdta"]
Regime = Literal["cells", "grid"]
LEVELS = 4
GRID_TOKENS = 16  # a side: what the cells of the variants give at 256 pixels
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "rep": (0, 1, 3),
    "norm": ("layer", "bias_free"),
    "order": ("fg", "gf"),
    "posemb_type": (None, "rope2d"),
    "attn_type": (None, "v2"),
}


@dataclass(frozen=True)
class Config:
    """A restoration network.

    Attributes:
        in_channels: of input and output: 3 colour, 1 grey.
        dim: width C of the first level; the others have 2C, 4C and 8C.
        num_blocks: FG blocks of the levels, decoders as encoders.
        num_refinement_blocks: FG blocks after the last decoder, of width 2C as that.
        num_heads: attention heads of the levels.
        window_size: side of FCSA's windows.
        cell_sizes: sides of GGSA's cells at the levels.
        ffn_expansion_factor: hidden width of a feed-forward net in widths of the level.
        rep: of the feed-forward nets, 0, 1 or 3; see ``RepLeFFN``.
        plain_identity: with rep 0, add the identity to the 5x5 convolution, as the others do (the
            authors' rep 0 has none).
        attention: of a block's focal and of its grid half; "fcsa" and "ggsa" is the paper's FG
            block, all else is for ablations.
        order: which half comes first.
        norm: "layer" (weight and bias, eps 1e-6) or "bias_free" (Restormer's for denoising: the
            mean is not subtracted either, eps 1e-5).
        bias: of FCSA, of GGSA's ``to_qkv``, of the feed-forward nets and the plain convolutions.
        posemb_type, attn_type: of GGSA; None is the default of the authors' code.
    """

    in_channels: int = 3
    dim: int = 48
    num_blocks: tuple[int, ...] = (2, 3, 3, 4)
    num_refinement_blocks: int = 2
    num_heads: tuple[int, ...] = (1, 2, 4, 8)
    window_size: int = 8
    cell_sizes: tuple[int, ...] = (16, 8, 4, 2)
    ffn_expansion_factor: float = 2.0
    rep: int = 1
    plain_identity: bool = True
    attention: tuple[Attention, Attention] = ("fcsa", "ggsa")
    order: Literal["fg", "gf"] = "fg"
    norm: Literal["layer", "bias_free"] = "layer"
    bias: bool = False
    posemb_type: Literal["rope2d"] | None = None
    attn_type: Literal["v2"] | None = None

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {known}")
        for name in ("num_blocks", "num_heads", "cell_sizes"):
            if len(getattr(self, name)) != LEVELS:
                raise ValueError(f"{name}={getattr(self, name)}: expected {LEVELS} numbers")
        if len(self.attention) != 2 or not set(self.attention) <= set(ATTENTIONS):
            kinds = ", ".join(ATTENTIONS)
            raise ValueError(f"attention={self.attention}: expected two of {kinds}")

    @classmethod
    def of(cls, config: Config | Mapping[str, Any]) -> Config:
        """From a mapping; lists become tuples.

        Raises:
            ValueError: an option is unknown or has a value that no network has.
        """
        if isinstance(config, Config):
            return config
        known = [f.name for f in fields(cls)]
        if unknown := [name for name in config if name not in known]:
            raise ValueError(f"unknown network option {unknown[0]!r}; known: {', '.join(known)}")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in config.items()
        }
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping that ``of`` reads back."""
        return asdict(self)

    def merged(self) -> Config:
        """Of the same network with merged feed-forward nets (``feedforward.merge``)."""
        return replace(self, rep=0, plain_identity=False)


class ChannelNorm(nn.Module):
    """Normalises each pixel over its channels.

    Args:
        kind: "layer", or "bias_free": x / sqrt(var(x) + 1e-5) * weight.
    """

    def __init__(self, dim: int, kind: str = "layer") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if kind == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        y = x.permute(0, 2, 3, 1)
        if self.bias is not None:
            y = F.layer_norm(y, y.shape[-1:], self.weight, self.bias, 1e-6)
        else:
            variance = y.float().var(dim=-1, keepdim=True, correction=0)
            y = (y * torch.rsqrt(variance + 1e-5).to(y.dtype)) * self.weight
        return y.permute(0, 3, 1, 2)


class FGBlock(nn.Module):
    """Focal attention, feed-forward net, grid attention, feed-forward net, each added to its input.

    ``x += focal_attn(norm1(x)); x += focal_mlp(norm2(x)); x += grid_attn(norm3(x));
    x += grid_mlp(norm4(x))``; with order "gf" the last two come first.

    Args:
        config: of the network.
        level: 0 to 3.
        dim: channels.

    Source: ipt_v2 sheet 3.5 (the order inside is inferred from the paper's name for the block).
    """

    def __init__(self, config: Config, level: int, dim: int) -> None:
        super().__init__()
        self.order = config.order
        focal, grid = (ATTENTIONS[kind] for kind in config.attention)
        self.norm1 = ChannelNorm(dim, config.norm)
        self.focal_attn = focal(config, level, dim)
        self.norm2 = ChannelNorm(dim, config.norm)
        self.focal_mlp = _feed_forward(config, dim)
        self.norm3 = ChannelNorm(dim, config.norm)
        self.grid_attn = grid(config, level, dim)
        self.norm4 = ChannelNorm(dim, config.norm)
        self.grid_mlp = _feed_forward(config, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if self.order == "fg":
            return self._grid(self._focal(x))
        return self._focal(self._grid(x))

    def _focal(self, x: Tensor) -> Tensor:
        x = x + self.focal_attn(self.norm1(x))
        return x + self.focal_mlp(self.norm2(x))

    def _grid(self, x: Tensor) -> Tensor:
        x = x + self.grid_attn(self.norm3(x))
        return x + self.grid_mlp(self.norm4(x))


class IPTV2(nn.Module):
    """Restores pictures: the network's output is added to its input.

    Source: ipt_v2 sheet 3.5.
    """

    def __init__(self, config: Config | Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config = Config.of(config)
        self.regime: Regime = "cells"
        bias, dims = config.bias, [config.dim << level for level in range(LEVELS)]

        def blocks(level: int, dim: int, count: int | None = None) -> nn.Sequential:
            count = config.num_blocks[level] if count is None else count
            return nn.Sequential(*[FGBlock(config, level, dim) for _ in range(count)])

        self.patch_embed = PatchEmbed(config.in_channels, config.dim, bias=bias)
        self.encoder_level1 = blocks(0, dims[0])
        self.down1_2 = Resample(dims[0], up=False, bias=bias)
        self.encoder_level2 = blocks(1, dims[1])
        self.down2_3 = Resample(dims[1], up=False, bias=bias)
        self.encoder_level3 = blocks(2, dims[2])
        self.down3_4 = Resample(dims[2], up=False, bias=bias)
        self.latent = blocks(3, dims[3])
        self.up4_3 = Resample(dims[3], up=True, bias=bias)
        self.reduce_chan_level3 = nn.Conv2d(dims[3], dims[2], 1, bias=bias)
        self.decoder_level3 = blocks(2, dims[2])
        self.up3_2 = Resample(dims[2], up=True, bias=bias)
        self.reduce_chan_level2 = nn.Conv2d(dims[2], dims[1], 1, bias=bias)
        self.decoder_level2 = blocks(1, dims[1])
        self.up2_1 = Resample(dims[1], up=True, bias=bias)
        self.decoder_level1 = blocks(0, dims[1])
        self.refinement = blocks(0, dims[1], config.num_refinement_blocks)
        self.output = nn.Conv2d(dims[1], config.in_channels, 3, padding=1, bias=bias)

    @property
    def alignment(self) -> int:
        """Pictures are padded to multiples of this many pixels inside ``forward``."""
        parts = [1 << (LEVELS - 1)]
        for level in range(LEVELS):
            if any(kind.startswith("fcsa") for kind in self.config.attention):
                parts.append(self.config.window_size << level)
            if "ggsa" in self.config.attention and self.regime == "cells":
                parts.append(self.config.cell_sizes[level] << level)
        return math.lcm(*parts)

    def set_regime(self, regime: Regime, *, tokens: int = GRID_TOKENS) -> None:
        """How GGSA divides maps, at training or only at inference.

        Args:
            regime: "cells": cells of ``cell_sizes``, as trained; tokens, and cost per pixel, grow
                with the picture. "grid": cells grow with the picture, so that there are at most
                ``tokens`` rows and columns of them. The two agree at 256x256 for the variants;
                which one was used belongs to every number.
            tokens: a side, for "grid".

        Raises:
            ValueError: no such regime, or no positive number of tokens.
        """
        if regime not in ("cells", "grid"):
            raise ValueError(f"regime={regime!r}: expected 'cells' or 'grid'")
        if tokens < 1:
            raise ValueError(f"tokens={tokens}: expected a number from 1 up")
        self.regime = regime
        for module in self.modules():
            if isinstance(module, GGSA):
                module.tokens_per_side = tokens if regime == "grid" else None

    def forward(self, x: Tensor) -> Tensor:
        """Restore pictures of any size.

        Args:
            x: (B, in_channels, H, W), usually in [0, 1].

        Returns:
            (B, in_channels, H, W), not clamped.

        Raises:
            ValueError: another number of channels, or an empty picture.
        """
        height, width = self._check(x)
        y = self.patch_embed(pad_to_multiple(x, self.alignment))
        e1 = self.encoder_level1(y)
        e2 = self.encoder_level2(self.down1_2(e1))
        e3 = self.encoder_level3(self.down2_3(e2))
        y = self.up4_3(self.latent(self.down3_4(e3)))
        y = self.decoder_level3(self.reduce_chan_level3(torch.cat([y, e3], dim=1)))
        y = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(y), e2], dim=1)))
        y = self.decoder_level1(torch.cat([self.up2_1(y), e1], dim=1))
        y = self.output(self.refinement(y))
        return y[:, :, :height, :width] + x

    def _check(self, x: Tensor) -> tuple[int, int]:
        channels = self.config.in_channels
        if x.dim() != 4 or x.shape[1] != channels or 0 in x.shape[2:]:
            raise ValueError(
                f"pictures of shape {tuple(x.shape)}: expected (batch, {channels}, height, width) "
                "of at least one pixel"
            )
        return x.shape[2], x.shape[3]


def _feed_forward(config: Config, dim: int) -> RepLeFFN:
    return RepLeFFN(
        dim,
        config.ffn_expansion_factor,
        bias=config.bias,
        rep=config.rep,
        identity=config.plain_identity if config.rep == 0 else None,
    )


def _fcsa(config: Config, level: int, dim: int, *, shifted: bool = True) -> nn.Module:
    heads = config.num_heads[level]
    return FCSA(dim, config.window_size, heads, bias=config.bias, shifted=shifted)


def _fcsa_unshifted(config: Config, level: int, dim: int) -> nn.Module:
    return _fcsa(config, level, dim, shifted=False)


def _ggsa(config: Config, level: int, dim: int) -> nn.Module:
    return GGSA(
        dim,
        config.cell_sizes[level],
        config.num_heads[level],
        bias=config.bias,
        posemb_type=config.posemb_type,
        attn_type=config.attn_type,
    )


def _mdta(config: Config, level: int, dim: int) -> nn.Module:
    return MDTA(dim, config.num_heads[level], bias=config.bias)


ATTENTIONS = {"fcsa": _fcsa, "fcsa_unshifted": _fcsa_unshifted, "ggsa": _ggsa, "mdta": _mdta}

# Sizes of our own, ipt_v2 sheet 3.5; the paper's are not known. The toys are for tests, mini is
# trained on one processor and ships with the package.
_COLOUR = {
    "b": Config(),
    "s": Config(dim=32),
    "t": Config(dim=16),
    "toy": Config(dim=24, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1),
    "mini": Config(dim=16, num_blocks=(1, 1, 1, 1), num_refinement_blocks=0),
    "cpu_toy": Config(dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=0),
}
VARIANTS: dict[str, Config] = _COLOUR | {
    f"{name}_grey": replace(config, in_channels=1) for name, config in _COLOUR.items()
}


def build(config: Config | Mapping[str, Any]) -> IPTV2:
    """The restoration network that ``config`` describes, with fresh weights (PyTorch's defaults).

    Raises:
        ValueError: an option is unknown or has a value that no network has.
    """
    return IPTV2(config)
