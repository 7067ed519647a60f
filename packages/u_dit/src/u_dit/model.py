"""U-DiT, its named sizes and the steps of its ablation.

Argument names, parameter names, shapes and order are those of the authors' code.

Source: u_dit sheet 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import lcm
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from papers_shared.diffusion.udit_unet import (
    LEVELS,
    LabelDropout,
    UDiTUNet,
    adaln_half,
    adaln_modulation,
)
from papers_shared.networks.rep_ffn import Mlp, RepLeFFN, merge_ffns
from u_dit.attention import DownsampledAttention, fold_shortcuts
from u_dit.dit import DiT, DiTConfig

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Config:
    """A U-DiT, in the argument names and with the defaults of the authors' class.

    Attributes:
        input_size: side of the latents (no tensor depends on it; pipelines sample this size).
        down_factor: of the tokens; one number or one for each of encoder-1, encoder-2, latent,
            decoder-2, decoder-1; 1 is full attention.
        in_channels, hidden_size, depth, num_classes, class_dropout_prob, learn_sigma,
            label_dropout: see ``UDiTUNet``; an entry of ``depth`` is a pair of DiT blocks.
        num_heads: at every level.
        mlp_ratio: hidden width of a feed-forward net in widths of the level.
        ffn_type, rep: 'rep' (see ``RepLeFFN``: rep 1, or 0) or 'basic'.
        attn_type, posemb_type, downsampler, down_shortcut, kv: see ``DownsampledAttention``.
    """

    input_size: int = 32
    down_factor: int | tuple[int, ...] = 2
    in_channels: int = 4
    hidden_size: int = 1152
    depth: tuple[int, ...] = (2, 5, 8, 5, 2)
    num_heads: int = 16
    mlp_ratio: float = 4
    class_dropout_prob: float = 0.1
    num_classes: int = 1000
    learn_sigma: bool = True
    rep: int = 1
    ffn_type: Literal["rep", "basic"] = "rep"
    posemb_type: Literal["rope2d"] | None = None
    attn_type: Literal["v2"] | None = None
    downsampler: str = "dwconv5"
    down_shortcut: bool = False
    label_dropout: LabelDropout = "independent"
    kv: bool = False

    @classmethod
    def of(cls, config: Config | Mapping[str, Any]) -> Config:
        """From a mapping; lists become tuples.

        Raises:
            ValueError: an option is unknown.
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
        """Of the same network as ``fuse`` makes it."""
        folded = self.down_shortcut and not self.downsampler.startswith("dwconv")
        rep = 0 if self.ffn_type == "rep" else self.rep
        return replace(self, rep=rep, down_shortcut=folded)

    @property
    def out_channels(self) -> int:
        """Channels of the output: noise, and with ``learn_sigma`` its variance."""
        return self.in_channels * (2 if self.learn_sigma else 1)

    def factor(self, stage: int) -> int:
        """Token downsampling of a stage."""
        if isinstance(self.down_factor, int):
            return self.down_factor
        if len(self.down_factor) != len(LEVELS):
            raise ValueError(
                f"down_factor={self.down_factor}: expected one number or {len(LEVELS)}"
            )
        return self.down_factor[stage]

    @property
    def alignment(self) -> int:
        """Height and width of a latent have to be multiples of this."""
        return lcm(1 << max(LEVELS), *(self.factor(s) << LEVELS[s] for s in range(len(LEVELS))))


class UDiTBlock(nn.Module):
    """Two DiT blocks in sequence with the same condition.

    Args:
        dim: width of the level.
        config: of the network.
        down_factor: of this level's tokens.

    Source: u_dit sheet 3.2.
    """

    def __init__(self, dim: int, config: Config, *, down_factor: int) -> None:
        super().__init__()

        def attention() -> DownsampledAttention:
            return DownsampledAttention(
                dim,
                config.num_heads,
                down_factor=down_factor,
                downsampler=config.downsampler,
                down_shortcut=config.down_shortcut,
                attn_type=config.attn_type,
                posemb_type=config.posemb_type,
                kv=config.kv,
            )

        def mlp() -> nn.Module:
            if config.ffn_type == "rep":
                return RepLeFFN(dim, config.mlp_ratio, rep=config.rep)
            if config.ffn_type == "basic":
                return Mlp(dim, config.mlp_ratio)
            raise ValueError(f"ffn_type={config.ffn_type!r}: expected 'rep' or 'basic'")

        self.attn1 = attention()
        self.mlp1 = mlp()
        self.adaLN_modulation1 = adaln_modulation(dim, 6)
        self.attn2 = attention()
        self.mlp2 = mlp()
        self.adaLN_modulation2 = adaln_modulation(dim, 6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(B, C, H, W) and condition (B, C) to (B, C, H, W)."""
        x = adaln_half(x, c, attention=self.attn1, mlp=self.mlp1, modulation=self.adaLN_modulation1)
        return adaln_half(
            x, c, attention=self.attn2, mlp=self.mlp2, modulation=self.adaLN_modulation2
        )


class UDiT(UDiTUNet):
    """The paper's network, made from its configuration; ``forward`` stands in ``UDiTUNet``.

    Attributes:
        options: the configuration.
    """

    def __init__(self, config: Config | Mapping[str, Any]) -> None:
        config = Config.of(config)

        def block(stage: int, width: int) -> nn.Module:
            return UDiTBlock(width, config, down_factor=config.factor(stage))

        super().__init__(
            block,
            in_channels=config.in_channels,
            hidden_size=config.hidden_size,
            depth=config.depth,
            num_classes=config.num_classes,
            class_dropout_prob=config.class_dropout_prob,
            learn_sigma=config.learn_sigma,
            alignment=config.alignment,
            label_dropout=config.label_dropout,
        )
        self.options = config


def build(config: Config | DiTConfig | Mapping[str, Any]) -> UDiT | DiT:
    """The network that a configuration describes, with fresh weights.

    Args:
        config: of a U-DiT, or (a mapping with ``patch_size``) of the DiT it is compared with.
    """
    if isinstance(config, DiTConfig) or (isinstance(config, Mapping) and "patch_size" in config):
        return DiT(config)
    return UDiT(config)


def fuse(model: M) -> M:
    """A copy for inference, every feed-forward net merged into 1x1, 5x5 depthwise, 1x1.

    The downsamplers' shortcuts go into their kernels, too, and weights are laid out channels last.

    The paper counts this form ("Params", GFLOPs). The network itself is left as it is, and
    ``train()`` and ``eval()`` change nothing; the authors' ``eval()`` changes weights in place.

    Source: u_dit sheet 3.6.
    """
    made = merge_ffns(model)
    fold_shortcuts(made)
    made = made.to(memory_format=torch.channels_last)
    if isinstance(made, UDiT):
        made.options = made.options.merged()
        register: Any = getattr(made, "register_to_config", None)
        if register is not None:  # a diffusers model keeps a configuration, too
            register(rep=made.options.rep, down_shortcut=made.options.down_shortcut)
    return made


def _size(dim: int, heads: int, **changes: Any) -> Config:
    base = Config(
        hidden_size=dim,
        num_heads=heads,
        mlp_ratio=2,
        attn_type="v2",
        posemb_type="rope2d",
        down_shortcut=True,
    )
    return replace(base, **changes)


def _vanilla(dim: int, heads: int) -> Config:
    return _size(dim, heads, attn_type=None, posemb_type=None, ffn_type="basic")


# The toy experiment's sizes are not in the paper; these fit its FLOPs (u_dit sheet 3.12).
_UNET = Config(
    hidden_size=48,
    num_heads=2,
    depth=(1, 1, 2, 1, 1),
    ffn_type="basic",
    downsampler="none",
    down_factor=1,
)
_TOKENS = replace(_UNET, downsampler="dwconv5", down_shortcut=True, down_factor=2)
_COSINE = replace(_TOKENS, attn_type="v2")
_ROPE = replace(_COSINE, posemb_type="rope2d")
_DWCONV = replace(_ROPE, ffn_type="rep", rep=0)

VARIANTS: dict[str, Config] = {
    # Ours, not the paper's: the network that ships.
    "U-DiT-mini": _size(32, 4, depth=(1, 1, 2, 1, 1), label_dropout="joint"),
    "U-DiT-S": _size(96, 4),
    "U-DiT-B": _size(192, 8),
    "U-DiT-L": _size(384, 16),
    "U-DiT-S-vanilla": _vanilla(96, 4),
    "U-DiT-B-vanilla": _vanilla(192, 8),
    "U-DiT-L-vanilla": _vanilla(384, 16),
    # Tables 1, 7 and 9: each differs from the one before in one thing.
    "DiT-UNet-Slim": replace(_UNET, hidden_size=36),
    "DiT-UNet": _UNET,
    "DiT-UNet-kv": replace(_TOKENS, kv=True),
    "U-DiT-T-pixelshuffle": replace(_UNET, down_factor=2),
    "U-DiT-T-dwconv": replace(_TOKENS, down_shortcut=False),
    "U-DiT-T": _TOKENS,
    "U-DiT-T-cosine": _COSINE,
    "U-DiT-T-rope": _ROPE,
    "U-DiT-T-dwconv-ffn": _DWCONV,
    "U-DiT-T-all": replace(_DWCONV, rep=1),
}
