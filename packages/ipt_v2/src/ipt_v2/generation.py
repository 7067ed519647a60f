"""The network for class-conditional generation of latents: U-DiT's U-net with IPT-V2's attentions.

Argument, parameter names and order are those of the authors' file, in which this network is called
IPT_UNet. The sizes of the paper's diffusion models are not known; those here are ours.

Source: ipt_v2 sheet 3.4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from torch import Tensor, nn

from ipt_v2.attention import FCSA, GGSA, MDTA, Posemb
from ipt_v2.feedforward import Mlp, RepLeFFN
from papers_shared.diffusion.udit_unet import (
    LEVELS,
    LabelDropout,
    UDiTUNet,
    adaln_half,
    adaln_modulation,
)

GRID, FOCAL, CHANNEL = 0, 1, 4  # kinds of attention, as the authors number them
STAGES = len(LEVELS)


@dataclass(frozen=True)
class UNetConfig:
    """A generation network, in the argument names and with the defaults of the authors' file.

    Attributes:
        input_size: side of the latent; only the position biases depend on it.
        global_win, local_win: sides of GGSA's cells and of FCSA's windows, one number or one for
            each of encoder-1, encoder-2, latent, decoder-2, decoder-1.
        in_channels, hidden_size, depth, num_classes, class_dropout_prob, learn_sigma: see
            ``UDiTUNet``.
        num_heads: at every level.
        mlp_ratio: hidden width of a feed-forward net in widths of the level.
        rep: of the feed-forward nets of ffn_type "rep": 0, 1 or 3, see ``RepLeFFN``.
        ffn_type: "rep", "basic" or "dwconvK".
        attn_seq: attention of a block's two halves: 0 GGSA, 1 FCSA, 4 channel attention of the
            whole map (Restormer's). [0, 1] is taken to be IPT-V2; [0, 0] is the file's default and
            U-DiT.
        posemb_type, attn_type, before_attn, after_attn, aug_shortcut: of every GGSA.
        label_dropout: see ``UDiTUNet``.
    """

    depth: tuple[int, ...]
    input_size: int = 32
    global_win: int | tuple[int, ...] = 2
    local_win: int | tuple[int, ...] = 8
    in_channels: int = 4
    hidden_size: int = 1152
    num_heads: int = 16
    mlp_ratio: float = 4
    class_dropout_prob: float = 0.1
    num_classes: int = 1000
    learn_sigma: bool = True
    rep: int = 1
    ffn_type: str = "rep"
    attn_seq: tuple[int, int] = (GRID, GRID)
    posemb_type: Posemb | None = None
    attn_type: Literal["v2"] | None = None
    before_attn: str | None = None
    after_attn: str | None = None
    aug_shortcut: bool = False
    label_dropout: LabelDropout = "independent"

    @classmethod
    def of(cls, config: UNetConfig | Mapping[str, Any]) -> UNetConfig:
        """From a mapping; lists become tuples.

        Raises:
            ValueError: an option is unknown, or ``depth`` is missing.
        """
        if isinstance(config, UNetConfig):
            return config
        known = [f.name for f in fields(cls)]
        if unknown := [name for name in config if name not in known]:
            raise ValueError(f"unknown network option {unknown[0]!r}; known: {', '.join(known)}")
        if "depth" not in config:
            raise ValueError(f"depth is missing: {STAGES} numbers, blocks of the stages")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in config.items()
        }
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping that ``of`` reads back."""
        return asdict(self)

    def merged(self) -> UNetConfig:
        """Of the same network with merged feed-forward nets (``feedforward.merge``)."""
        return replace(self, rep=0)

    def window(self, name: Literal["global_win", "local_win"], stage: int) -> int:
        """Side of cells or windows at a stage."""
        value = getattr(self, name)
        if isinstance(value, int):
            return value
        if len(value) != STAGES:
            raise ValueError(f"{name}={value}: expected one number or {STAGES}")
        return value[stage]

    @property
    def alignment(self) -> int:
        """Height and width of a latent have to be multiples of this."""
        parts = [1 << max(LEVELS)]
        for stage, level in enumerate(LEVELS):
            if GRID in self.attn_seq:
                parts.append(self.window("global_win", stage) << level)
            if FOCAL in self.attn_seq:
                parts.append(self.window("local_win", stage) << level)
        return math.lcm(*parts)


class IPTBlock(nn.Module):
    """Two DiT blocks with the same condition: a "global" half, then a "local" one.

    Arguments as of ``UNetConfig``, for one level.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4,
        input_size: int | None = None,
        global_win: int = 8,
        local_win: int = 8,
        rep: int = 1,
        ffn_type: str = "rep",
        attn_seq: Sequence[int] = (GRID, GRID),
        posemb_type: Posemb | None = None,
        attn_type: Literal["v2"] | None = None,
        before_attn: str | None = None,
        after_attn: str | None = None,
        aug_shortcut: bool = False,
    ) -> None:
        super().__init__()
        if len(attn_seq) != 2 or not set(attn_seq) <= {GRID, FOCAL, CHANNEL}:
            raise ValueError(
                f"attn_seq={list(attn_seq)}: expected two of {GRID} (GGSA), {FOCAL} (FCSA) and "
                f"{CHANNEL} (channel attention); the file's other kinds are not IPT-V2's"
            )

        def attention(kind: int) -> nn.Module:
            if kind == FOCAL:
                return FCSA(hidden_size, local_win, num_heads, bias=True)
            if kind == CHANNEL:
                return MDTA(hidden_size, num_heads, bias=True)
            return GGSA(
                hidden_size,
                global_win,
                num_heads,
                input_size=input_size,
                bias=True,
                posemb_type=posemb_type,
                attn_type=attn_type,
                before_attn=before_attn,
                after_attn=after_attn,
                aug_shortcut=bool(aug_shortcut),
            )

        self.global_attn = attention(attn_seq[0])
        self.global_mlp = _feed_forward(ffn_type, hidden_size, mlp_ratio, rep)
        self.global_adaLN_modulation = adaln_modulation(hidden_size, 6)
        self.local_attn = attention(attn_seq[1])
        self.local_mlp = _feed_forward(ffn_type, hidden_size, mlp_ratio, rep)
        self.local_adaLN_modulation = adaln_modulation(hidden_size, 6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(B, C, H, W) and condition (B, C) to (B, C, H, W)."""
        x = adaln_half(
            x,
            c,
            attention=self.global_attn,
            mlp=self.global_mlp,
            modulation=self.global_adaLN_modulation,
        )
        return adaln_half(
            x,
            c,
            attention=self.local_attn,
            mlp=self.local_mlp,
            modulation=self.local_adaLN_modulation,
        )


class IPTUNet(UDiTUNet):
    """The authors' IPT_UNet, made from its configuration.

    Attributes:
        options: the configuration; also ``config``, unless the network is a diffusers model.
    """

    def __init__(self, config: UNetConfig | Mapping[str, Any]) -> None:
        config = UNetConfig.of(config)

        def block(stage: int, width: int) -> nn.Module:
            return IPTBlock(
                width,
                config.num_heads,
                mlp_ratio=config.mlp_ratio,
                input_size=config.input_size >> LEVELS[stage],
                global_win=config.window("global_win", stage),
                local_win=config.window("local_win", stage),
                rep=config.rep,
                ffn_type=config.ffn_type,
                attn_seq=config.attn_seq,
                posemb_type=config.posemb_type,
                attn_type=config.attn_type,
                before_attn=config.before_attn,
                after_attn=config.after_attn,
                aug_shortcut=config.aug_shortcut,
            )

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

    @property
    def config(self) -> UNetConfig:
        """The configuration."""
        return self.options

    @config.setter
    def config(self, config: UNetConfig) -> None:
        self.options = config


def _feed_forward(ffn_type: str, dim: int, mlp_ratio: float, rep: int) -> nn.Module:
    if ffn_type == "rep":
        return RepLeFFN(dim, mlp_ratio, rep=rep)
    if ffn_type == "basic":
        return Mlp(dim, mlp_ratio)
    if ffn_type.startswith("dwconv") and ffn_type[6:] in ("1", "3", "5", "7", "9"):
        return Mlp(dim, mlp_ratio, kernel_size=int(ffn_type[6:]))
    raise ValueError(f"ffn_type={ffn_type!r}: expected 'rep', 'basic' or 'dwconvK', K odd")


def _size(dim: int, heads: int, depth: tuple[int, ...]) -> UNetConfig:
    return UNetConfig(
        hidden_size=dim,
        num_heads=heads,
        depth=depth,
        mlp_ratio=2,
        local_win=(8, 8, 4, 8, 8),
        attn_seq=(GRID, FOCAL),
    )


# Small ones of ours for pictures of 16x16: FCSA's windows divide each level.
_TOY = UNetConfig(
    input_size=16,
    hidden_size=16,
    num_heads=2,
    depth=(1, 1, 1, 1, 1),
    local_win=(8, 4, 2, 4, 8),
    attn_seq=(GRID, FOCAL),
)

# U-DiT's sizes with [0, 1] attention (ipt_v2 sheet 3.4); ours, the paper's are not known.
GENERATION_VARIANTS: dict[str, UNetConfig] = {
    "g16": _TOY,
    "g48": _size(48, 2, (2, 3, 4, 3, 2)),
    "g96": _size(96, 4, (2, 5, 8, 5, 2)),
    "g192": _size(192, 8, (2, 5, 8, 5, 2)),
    "g384": _size(384, 16, (2, 5, 8, 5, 2)),
}
