"""DiT-SR's denoiser: isotropic Swin stages in a U, conditioned on the step through AdaFM.

Every stage has the same width C2, entered and left through 1x1 convolutions; levels differ in the
width of the 3x3 convolutions that fuse skips and resample. Parameters have the names and shapes of
the authors' checkpoints (``adaLN_scale_*`` is theirs for what holds AdaFM's gains).

Source: Cheng et al., Effective Diffusion Transformer Architecture for Image Super-Resolution,
AAAI 2025, arXiv 2409.19589; dit_sr sheet 3.1 to 3.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from papers_shared.diffusion.swin import SwinBlock, SwinStage, Windows, group_norm
from papers_shared.diffusion.swin_unet import UNetConfig
from papers_shared.diffusion.unet_parts import ConditionalUNet, Downsample, Entry, Upsample
from papers_shared.kernels.adafm import group_norm_adafm

Conditioning = Literal["adafm", "adaln", "adaln_zero", "none"]
CONDITIONINGS = ("adafm", "adaln", "adaln_zero", "none")


@dataclass(frozen=True)
class Config(UNetConfig):
    """DiT-SR's network; the other attributes are those of ``UNetConfig``.

    Attributes:
        swin_depth: blocks a stage; the second decoder entry of a level has one.
        fft_patch_size: side p of AdaFM's patches; smaller at levels whose nominal side is.
        conditioning: how a block knows the step. ``adafm`` is the paper's and the checkpoints';
            ``adaln`` (scale and shift), ``adaln_zero`` (and a gate that starts at 0) and ``none``
            are here for the ablation.
    """

    swin_depth: int = 6
    mlp_ratio: float = 4
    dropout: float = 0.1
    fft_patch_size: int = 8
    conditioning: Conditioning = "adafm"

    def parts(self, side: int) -> tuple[int, ...]:
        """Windows, and AdaFM's patches."""
        return (*super().parts(side), min(self.fft_patch_size, side))


VARIANTS: dict[str, Config] = {
    "realsr": Config(),
    "realsr_lite": Config(
        model_channels=128, attention_resolutions=(64, 32, 16), swin_depth=4, swin_embed_dim=160
    ),
    "faceir": Config(in_channels=8, out_channels=8, lq_size=512),
    # Trained here: see weights/small.md.
    "small": Config(
        image_size=16,
        in_channels=12,
        out_channels=12,
        model_channels=48,
        channel_mult=(1, 2),
        attention_resolutions=(16, 8),
        num_head_channels=32,
        swin_depth=2,
        swin_embed_dim=96,
        mlp_ratio=2,
        dropout=0.0,
        lq_size=16,
        lq_channels=12,
        norm_groups=8,
    ),
}


class DiTBlock(SwinBlock):
    """``x = x + attention(AdaFM(norm1(x), g1)); x = x + mlp(AdaFM(norm2(x), g2))``.

    g1 and g2 are linear in SiLU(emb): p (p//2 + 1) gains each, for all channels and patches.

    Args:
        embedding: channels E of the time embedding.
        patch_size: p.
        conditioning: see ``Config``.
        dim, options: of ``SwinBlock``.

    Attributes:
        backend: of the AdaFM operator (``papers_shared.kernels.adafm``).

    Source: dit_sr sheet 3.4.
    """

    def __init__(
        self,
        dim: int,
        *,
        embedding: int,
        patch_size: int,
        conditioning: Conditioning,
        **options: Any,
    ) -> None:
        super().__init__(dim, **options)
        self.patch_size, self.conditioning = patch_size, conditioning
        self.backend = "auto"
        if conditioning == "adafm":
            gains = patch_size * (patch_size // 2 + 1)
            self.adaLN_scale_msa = _time_linear(embedding, gains)
            self.adaLN_scale_mlp = _time_linear(embedding, gains)
        elif conditioning != "none":
            parts = 6 if conditioning == "adaln_zero" else 4
            self.adaLN_modulation = _time_linear(embedding, parts * dim)
            if conditioning == "adaln_zero":
                for parameter in self.adaLN_modulation.parameters():
                    nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor, emb: Tensor, windows: Windows) -> Tensor:
        """(B, windows, N, C), (B, E) -> (B, windows, N, C)."""
        if self.conditioning == "adafm":
            y = self._modulate(self.norm1, tokens, self.adaLN_scale_msa(emb), windows)
            tokens = tokens + self.attend(y, windows)
            y = self._modulate(self.norm2, tokens, self.adaLN_scale_mlp(emb), windows)
            return tokens + self.mlp(y)
        if self.conditioning == "none":
            return super().forward(tokens, emb, windows)
        first, second = self.adaLN_modulation(emb)[:, None, None].chunk(2, dim=-1)
        y, gate = _shift_scale(group_norm(self.norm1, tokens), first)
        tokens = tokens + gate * self.attend(y, windows)
        y, gate = _shift_scale(group_norm(self.norm2, tokens), second)
        return tokens + gate * self.mlp(y)

    def _modulate(
        self, norm: nn.GroupNorm, tokens: Tensor, gains: Tensor, windows: Windows
    ) -> Tensor:
        """AdaFM of the normalised tokens."""
        p = self.patch_size
        if p == windows.size:  # windows are patches: seen as a column of them, nothing is copied
            b, count, _, c = tokens.shape
            image = tokens.reshape(b, count * p, p, c)
        else:
            image = windows.join(tokens)
        y = group_norm_adafm(
            image.permute(0, 3, 1, 2),
            gains,
            norm.weight,
            norm.bias,
            num_groups=norm.num_groups,
            eps=norm.eps,
            patch_size=p,
            backend=self.backend,
        ).permute(0, 2, 3, 1)
        return y.reshape(tokens.shape) if p == windows.size else windows.split(y)


def _time_linear(embedding: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(embedding, outputs))


def _shift_scale(y: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor | float]:
    """(1 + scale) y + shift, and the gate: 1 where there are no gates."""
    width = y.shape[-1]
    shift, scale, *gate = modulation.split(width, dim=-1)
    return y * (1 + scale) + shift, gate[0] if gate else 1.0


class DiTSR(ConditionalUNet):
    """DiT-SR's denoiser; see ``Config`` and ``ConditionalUNet.forward``.

    Raises:
        ValueError: the configuration contradicts itself.
    """

    def __init__(self, config: Config | Mapping[str, Any]) -> None:
        config = Config.of(config)
        if config.conditioning not in CONDITIONINGS:
            raise ValueError(
                f"conditioning {config.conditioning!r} is none of {', '.join(CONDITIONINGS)}"
            )
        widths, sides = config.widths, config.sides
        super().__init__(config)
        if config.conditioning == "none":  # several processes wait for gradients of what is trained
            self.time_embed.requires_grad_(False)
        levels = range(len(widths))

        def stage(level: int, depth: int) -> list[nn.Module]:
            attended = sides[level] in config.attention_resolutions
            return [_stage(widths[level], sides[level], depth, config)] if attended else []

        skips = [widths[0]]
        for level in levels:
            self.input_blocks.append(Entry(*stage(level, config.swin_depth)))
            skips.append(widths[level])
            if level < levels[-1]:
                down = Downsample(widths[level], widths[level + 1])
                self.input_blocks.append(Entry(down))
                skips.append(widths[level + 1])
        self.middle_block = Entry(_stage(widths[-1], sides[-1], config.swin_depth, config))
        ch = widths[-1]
        for level in reversed(levels):
            for depth in (config.swin_depth, 1):
                fuse = nn.Conv2d(ch + skips.pop(), widths[level], 3, padding=1)
                ch = widths[level]
                self.output_blocks.append(Entry(fuse, *stage(level, depth)))
            if level:
                self.output_blocks[-1].append(Upsample(ch, widths[level - 1]))  # type: ignore[operator]
                ch = widths[level - 1]


def _stage(channels: int, side: int, depth: int, config: Config) -> SwinStage:
    blocks: list[SwinBlock] = [
        DiTBlock(
            config.swin_embed_dim,
            embedding=4 * config.model_channels,
            patch_size=min(config.fft_patch_size, side),
            conditioning=config.conditioning,
            **config.block_options(side, k),
        )
        for k in range(depth)
    ]
    return SwinStage(channels, config.swin_embed_dim, blocks)


def build(config: Config | Mapping[str, Any]) -> DiTSR:
    """The network of a configuration, with fresh weights.

    Args:
        config: a ``Config``, or a mapping in the argument names of the authors' configurations.

    Raises:
        ValueError: an option is unknown, or they contradict each other.
    """
    return DiTSR(config)
