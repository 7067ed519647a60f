"""ResShift's denoiser, a U-net of residual blocks and Swin stages: teacher and student of TAD-SR.

Source: Yue, Wang, Loy, ResShift, NeurIPS 2023 (arXiv 2307.12348); dit_sr sheet 3.6. Parameters have
the names and shapes of the authors' checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from torch import Tensor, nn

from papers_shared.diffusion.swin import Mask, SwinBlock, SwinStage
from papers_shared.diffusion.unet_parts import (
    ConditionalUNet,
    Downsample,
    Entry,
    Norm32,
    TimeConditioned,
    Upsample,
)

C = TypeVar("C", bound="UNetConfig")
# Constructor arguments of the authors' classes that have one value in every configuration.
FIXED: Mapping[str, Any] = {"dims": 2, "conv_resample": True, "use_fp16": False, "cond_lq": True}


@dataclass(frozen=True)
class UNetConfig:
    """What both denoisers are built from, in the argument names of the authors' configurations.

    Attributes:
        image_size: latent side at training; decides where windows shift.
        in_channels, out_channels: of the latent.
        model_channels: width C1.
        channel_mult: widths of the levels in units of C1.
        attention_resolutions: sides (not factors) that have a Swin stage.
        num_head_channels: channels of an attention head.
        swin_depth: blocks a stage.
        swin_embed_dim: width C2 of the stages.
        window_size, mlp_ratio, dropout: of the blocks.
        lq_size: side of the low-quality picture where the latent's is ``image_size``.
        lq_channels: 3: the condition is the low-quality picture, as in all released networks;
            ``in_channels``: it is z_y, the picture's latent, which spares a small network from
            learning the autoencoder.
        cond_mask: a mask is part of the condition (inpainting).
        mask: shift masks as the released code computes them, or Swin's.
        norm_groups: of every group norm; 32 in all released networks.
    """

    image_size: int = 64
    in_channels: int = 3
    out_channels: int = 3
    model_channels: int = 160
    channel_mult: tuple[int, ...] = (1, 2, 2, 4)
    attention_resolutions: tuple[int, ...] = (64, 32, 16, 8)
    num_head_channels: int = 32
    swin_depth: int = 2
    swin_embed_dim: int = 192
    window_size: int = 8
    mlp_ratio: float = 4
    dropout: float = 0.0
    lq_size: int = 64
    lq_channels: int = 3
    cond_mask: bool = False
    mask: Mask = "released"
    norm_groups: int = 32

    @classmethod
    def of(cls: type[C], config: UNetConfig | Mapping[str, Any]) -> C:
        """From a mapping; lists become tuples.

        Raises:
            ValueError: an option is unknown or has a value that no network has.
        """
        if isinstance(config, cls):
            return config
        if not isinstance(config, Mapping):
            raise ValueError(f"expected {cls.__name__} or a mapping, got {type(config).__name__}")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in config.items()
        }
        for name, only in FIXED.items():
            if values.pop(name, only) != only:
                raise ValueError(f"{name} has to be {only}: no released network has another value")
        known = [f.name for f in fields(cls)]
        if unknown := [name for name in values if name not in known]:
            raise ValueError(f"unknown network option {unknown[0]!r}; known: {', '.join(known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping that ``of`` reads back."""
        return asdict(self)

    @property
    def num_heads(self) -> int:
        """Attention heads of a block."""
        return self.swin_embed_dim // self.num_head_channels

    @property
    def sides(self) -> list[int]:
        """Nominal side of each level."""
        return [self.image_size >> level for level in range(len(self.channel_mult))]

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.model_channels * mult for mult in self.channel_mult]

    @property
    def alignment(self) -> int:
        """Height and width of a latent have to be multiples of this."""
        last = len(self.channel_mult) - 1
        needs = [1 << last]
        for level, side in enumerate(self.sides):
            if side in self.attention_resolutions or level == last:
                needs += [part << level for part in self.parts(side)]
        return math.lcm(*needs)

    def parts(self, side: int) -> tuple[int, ...]:
        """Sides of what a stage at nominal side ``side`` cuts its map into."""
        return (min(self.window_size, side),)

    def block_options(self, side: int, k: int) -> dict[str, Any]:
        """Arguments of block k of a stage at nominal side ``side``."""
        return {
            "side": side,
            "window_size": self.window_size,
            "shift": k % 2 == 1,
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "dropout": self.dropout,
            "mask": self.mask,
            "norm_groups": self.norm_groups,
        }


@dataclass(frozen=True)
class SwinUNetConfig(UNetConfig):
    """ResShift's U-net.

    Attributes:
        num_res_blocks: residual blocks a level.
        use_scale_shift_norm: the time embedding scales and shifts the second norm; False: it is
            added before it.
        resblock_updown: has to be False (no released network resamples in residual blocks).
    """

    num_res_blocks: tuple[int, ...] = (2, 2, 2, 2)
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False

    @property
    def res_blocks(self) -> tuple[int, ...]:
        """One number a level, also where the configuration gives one for all."""
        blocks: Any = self.num_res_blocks
        return (blocks,) * len(self.channel_mult) if isinstance(blocks, int) else blocks


class ResBlock(TimeConditioned):
    """GroupNorm, SiLU, 3x3 convolution, time, GroupNorm, SiLU, 3x3 convolution, and a skip."""

    def __init__(self, inputs: int, outputs: int, config: SwinUNetConfig) -> None:
        super().__init__()
        self.scale_shift = config.use_scale_shift_norm
        embedding = 4 * config.model_channels
        groups = config.norm_groups
        self.in_layers = nn.Sequential(
            Norm32(groups, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(embedding, (1 + self.scale_shift) * outputs)
        )
        last = nn.Conv2d(outputs, outputs, 3, padding=1)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.out_layers = nn.Sequential(
            Norm32(groups, outputs), nn.SiLU(), nn.Dropout(config.dropout), last
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, C, H, W), (B, E) -> (B, C', H, W)."""
        h = self.in_layers(x)
        time = self.emb_layers(emb)[:, :, None, None]
        norm, rest = self.out_layers[0], self.out_layers[1:]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = rest(norm(h) * (1 + scale) + shift)
        else:
            h = rest(norm(h + time))
        return self.skip_connection(x) + h


class UNetModelSwin(ConditionalUNet):
    """ResShift's denoiser; see ``SwinUNetConfig`` and ``ConditionalUNet.forward``.

    Raises:
        ValueError: the configuration contradicts itself.
    """

    def __init__(self, config: SwinUNetConfig | Mapping[str, Any]) -> None:
        config = SwinUNetConfig.of(config)
        if config.resblock_updown:
            raise ValueError("resblock_updown has to be False: no released network resamples so")
        if len(config.res_blocks) != len(config.channel_mult):
            raise ValueError(
                f"num_res_blocks {config.num_res_blocks} has to give one number for each of the "
                f"{len(config.channel_mult)} levels"
            )
        widths, sides = config.widths, config.sides
        super().__init__(config)
        ch, skips, last = widths[0], [widths[0]], len(widths) - 1
        for level, (width, side) in enumerate(zip(widths, sides, strict=True)):
            for j in range(config.res_blocks[level]):
                parts: list[nn.Module] = [ResBlock(ch, width, config)]
                ch = width
                if j == 0 and side in config.attention_resolutions:
                    parts.append(_stage(ch, side, config))
                self.input_blocks.append(Entry(*parts))
                skips.append(ch)
            if level < last:
                self.input_blocks.append(Entry(Downsample(ch, ch)))
                skips.append(ch)
        self.middle_block = Entry(
            ResBlock(ch, ch, config), _stage(ch, sides[-1], config), ResBlock(ch, ch, config)
        )
        for level in reversed(range(len(widths))):
            width, side = widths[level], sides[level]
            for j in range(config.res_blocks[level] + 1):
                parts = [ResBlock(ch + skips.pop(), width, config)]
                ch = width
                if j == 0 and side in config.attention_resolutions:
                    parts.append(_stage(ch, side, config))
                if level and j == config.res_blocks[level]:
                    parts.append(Upsample(ch, ch))
                self.output_blocks.append(Entry(*parts))

    def features(
        self, x: Tensor, timesteps: Tensor, lq: Tensor, mask: Tensor | None = None
    ) -> list[Tensor]:
        """Encoder features for TAD-SR's discriminator; arguments as of ``forward``.

        Returns:
            the outputs of the downsamplings, of the last encoder entry and of the middle: with
            four levels (B, C_k, h / s_k, w / s_k) for s = 2, 4, 8, 8, 8.

        Source: tad_sr sheet 3.1 (``only_fea``).
        """
        _, middle, skips = self.encode(x, timesteps, lq, mask)
        down = [
            skip
            for skip, entry in zip(skips, self.input_blocks, strict=True)
            if isinstance(entry[0], Downsample)  # type: ignore[index]
        ]
        return [*down, skips[-1], middle]


def _stage(channels: int, side: int, config: SwinUNetConfig) -> SwinStage:
    dim = config.swin_embed_dim
    blocks = [SwinBlock(dim, **config.block_options(side, k)) for k in range(config.swin_depth)]
    return SwinStage(channels, dim, blocks)


def rebuild_buffers(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict whose recomputable buffers are ``model``'s own.

    ``attn_mask`` and ``relative_position_index`` follow from the configuration; in a checkpoint
    they may be missing or belong to another nominal size.
    """
    own = {
        name: value
        for name, value in model.state_dict().items()
        if name.endswith(("attn_mask", "relative_position_index"))
    }
    rest = {
        name: value
        for name, value in state.items()
        if not name.endswith(("attn_mask", "relative_position_index"))
    }
    return {**rest, **own}
