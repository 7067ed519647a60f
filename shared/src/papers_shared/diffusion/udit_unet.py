"""The U-net of U-DiT and of IPT-V2's generation network; what stands in its levels is an argument.

Three levels of width D, 2D, 4D; each block gets a vector of its level's width made of time step and
class. Parameters have the names, shapes and order of the authors' code.

Source: Tian, Tu et al., U-DiTs, NeurIPS 2024 (arXiv 2405.02730); u_dit sheet 3.1, 3.2, 3.7, 3.8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers_shared.diffusion.unet_parts import timestep_embedding

LEVELS = (0, 1, 2, 1, 0)  # resolution of encoder-1, encoder-2, latent, decoder-2, decoder-1
WIDTHS = (1, 2, 4, 2, 2)  # their widths in units of D; decoder-1 is as wide as decoder-2
FREQUENCIES = 256
LabelDropout = Literal["independent", "joint"]


def channel_norm(x: Tensor) -> Tensor:
    """Layer norm of each pixel of (B, C, H, W) over its channels, eps 1e-6, nothing learned."""
    y = x.permute(0, 2, 3, 1)
    return F.layer_norm(y, y.shape[-1:], eps=1e-6).permute(0, 3, 1, 2)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``x * (1 + scale) + shift`` with (B, C) vectors for all pixels of (B, C, H, W)."""
    return torch.addcmul(shift[:, :, None, None], x, 1 + scale[:, :, None, None])


def adaln_modulation(dim: int, count: int) -> nn.Sequential:
    """SiLU and a linear layer: (B, dim) to ``count`` vectors; zero after ``initialise``."""
    return nn.Sequential(nn.SiLU(), nn.Linear(dim, count * dim))


def adaln_half(
    x: Tensor,
    c: Tensor,
    *,
    attention: Callable[[Tensor], Tensor],
    mlp: Callable[[Tensor], Tensor],
    modulation: Callable[[Tensor], Tensor],
) -> Tensor:
    """A DiT block with adaLN-zero.

    ``x += g1 attention(norm(x) (1 + s1) + h1); x += g2 mlp(norm(x) (1 + s2) + h2)``

    Args:
        x: (B, C, H, W).
        c: (B, C).
        attention, mlp: maps to maps of the same shape.
        modulation: c to (B, 6 C), in order h1, s1, g1, h2, s2, g2.

    Source: u_dit sheet 3.2.
    """
    h1, s1, g1, h2, s2, g2 = modulation(c).chunk(6, dim=1)
    x = x + g1[:, :, None, None] * attention(modulate(channel_norm(x), h1, s1))
    return x + g2[:, :, None, None] * mlp(modulate(channel_norm(x), h2, s2))


class Resample(nn.Module):
    """3x3 convolution, then pixels to channels (half the size) or channels to pixels (twice)."""

    def __init__(self, inputs: int, *, up: bool, bias: bool = False) -> None:
        super().__init__()
        outputs = 2 * inputs if up else inputs // 2
        shuffle = nn.PixelShuffle(2) if up else nn.PixelUnshuffle(2)
        self.body = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias), shuffle)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 2 C, H / 2, W / 2), or up: (B, C / 2, 2 H, 2 W)."""
        return self.body(x)


class PatchEmbed(nn.Module):
    """3x3 convolution into the network's width."""

    def __init__(self, inputs: int, dim: int, *, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, dim, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, dim, H, W)."""
        return self.proj(x)


class TimestepEmbedder(nn.Module):
    """Sinusoids of the raw step, linear, SiLU, linear."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        """(B,) steps 0 .. T-1 to (B, dim)."""
        dtype = self.get_parameter("mlp.0.weight").dtype
        return self.mlp(timestep_embedding(t, FREQUENCIES).to(dtype))


class LabelEmbedder(nn.Module):
    """A vector a class, and with ``null_label`` one more for "no class"."""

    def __init__(self, num_classes: int, dim: int, *, null_label: bool) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + null_label, dim)

    def forward(self, y: Tensor) -> Tensor:
        """(B,) labels to (B, dim)."""
        return self.embedding_table(y)


class Level(nn.ModuleList):
    """Blocks in sequence, all with the same condition."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(B, C, H, W) and (B, C) to (B, C, H, W)."""
        for block in self:
            x = block(x, c)
        return x


class FinalLayer(nn.Module):
    """Modulated norm and a 3x3 convolution to the output's channels."""

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.out_proj = nn.Conv2d(dim, outputs, 3, padding=1)
        self.adaLN_modulation = adaln_modulation(dim, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(B, dim, H, W) and (B, dim) to (B, outputs, H, W)."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.out_proj(modulate(channel_norm(x), shift, scale))


class UDiTUNet(nn.Module):
    """Predicts noise, and with ``learn_sigma`` its variance, from a noisy latent, step and class.

    Args:
        make_block: makes a block of (stage, width); stages are 0 .. 4: encoder-1, encoder-2,
            latent, decoder-2, decoder-1. A block maps x (B, width, h, w) and c (B, width) to x. Its
            modules named ``*adaLN_modulation*`` start at zero.
        in_channels: of the latent.
        hidden_size: width D.
        depth: blocks of the five stages.
        num_classes: labels 0 .. num_classes - 1; ``num_classes`` is "no class".
        class_dropout_prob: share of labels that training replaces by "no class"; 0: there is none.
        learn_sigma: twice as many output channels.
        alignment: height and width have to be multiples of this (4 for the U-net alone).
        label_dropout: the authors' code draws for each of the three label tables by itself, so all
            three are dropped together with probability p^3 only; "joint" draws once.
    """

    def __init__(
        self,
        make_block: Callable[[int, int], nn.Module],
        *,
        in_channels: int,
        hidden_size: int,
        depth: Sequence[int],
        num_classes: int,
        class_dropout_prob: float,
        learn_sigma: bool,
        alignment: int = 4,
        label_dropout: LabelDropout = "independent",
    ) -> None:
        super().__init__()
        if len(depth) != len(LEVELS):
            raise ValueError(f"depth={tuple(depth)}: expected {len(LEVELS)} numbers")
        if label_dropout not in ("independent", "joint"):
            raise ValueError(f"label_dropout={label_dropout!r}: expected 'independent' or 'joint'")
        self.num_classes, self.class_dropout_prob = num_classes, class_dropout_prob
        self.alignment, self.label_dropout = alignment, label_dropout
        dim = hidden_size

        def level(stage: int) -> Level:
            width = WIDTHS[stage] * dim
            return Level(make_block(stage, width) for _ in range(depth[stage]))

        self.x_embedder = PatchEmbed(in_channels, dim)
        for i in (1, 2, 3):
            width, null_label = dim << (i - 1), class_dropout_prob > 0
            self.add_module(f"t_embedder_{i}", TimestepEmbedder(width))
            labels = LabelEmbedder(num_classes, width, null_label=null_label)
            self.add_module(f"y_embedder_{i}", labels)
        self.encoder_level_1 = level(0)
        self.down1_2 = Resample(dim, up=False)
        self.encoder_level_2 = level(1)
        self.down2_3 = Resample(2 * dim, up=False)
        self.latent = level(2)
        self.up3_2 = Resample(4 * dim, up=True)
        self.reduce_chan_level2 = nn.Conv2d(4 * dim, 2 * dim, 1)
        self.decoder_level_2 = level(3)
        self.up2_1 = Resample(2 * dim, up=True)
        self.reduce_chan_level1 = nn.Conv2d(2 * dim, 2 * dim, 1)
        self.decoder_level_1 = level(4)
        self.output = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1)
        self.final_layer = FinalLayer(2 * dim, in_channels * (2 if learn_sigma else 1))
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """The authors' start: every block is the identity, the output is 0.

        Source: u_dit sheet 3.8.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                if "adaLN_modulation" in name or name == "final_layer.out_proj":
                    nn.init.zeros_(module.weight)
                if name.startswith("t_embedder_"):
                    nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Noise, and with ``learn_sigma`` the variance's interpolation after it.

        Args:
            x: (B, in_channels, H, W).
            t: (B,) integer steps 0 .. 999.
            y: (B,) integer labels; in training mode some are dropped.
            generator: of the draws of dropped labels.

        Returns:
            (B, in_channels or twice as many, H, W).

        Raises:
            ValueError: H or W is no multiple of ``alignment``.
        """
        if x.shape[2] % self.alignment or x.shape[3] % self.alignment:
            raise ValueError(
                f"a latent of {x.shape[2]}x{x.shape[3]}: height and width have to be multiples of "
                f"{self.alignment}"
            )
        c1, c2, c3 = self.conditions(t, y, generator=generator)
        e1 = self.encoder_level_1(self.x_embedder(x), c1)
        e2 = self.encoder_level_2(self.down1_2(e1), c2)
        h = self.up3_2(self.latent(self.down2_3(e2), c3))
        h = self.decoder_level_2(self.reduce_chan_level2(torch.cat([h, e2], dim=1)), c2)
        h = self.reduce_chan_level1(torch.cat([self.up2_1(h), e1], dim=1))
        h = self.decoder_level_1(h, c2)
        return self.final_layer(self.output(h), c2)

    def conditions(
        self, t: Tensor, y: Tensor, *, generator: torch.Generator | None = None
    ) -> list[Tensor]:
        """The vectors of the three levels, (B, D), (B, 2D) and (B, 4D); arguments as of forward."""
        dropping = self.training and self.class_dropout_prob > 0
        found: list[Tensor] = []
        for i in (1, 2, 3):
            if dropping and (i == 1 or self.label_dropout == "independent"):
                drawn = torch.rand(y.shape, generator=generator, device=y.device)
                dropped = drawn < self.class_dropout_prob
            labels = y.masked_fill(dropped, self.num_classes) if dropping else y
            time = self.get_submodule(f"t_embedder_{i}")(t)
            found.append(time + self.get_submodule(f"y_embedder_{i}")(labels))
        return found

    def forward_with_cfg(
        self, x: Tensor, t: Tensor, y: Tensor, cfg_scale: float, *, guidance_channels: int = 3
    ) -> Tensor:
        """Classifier-free guidance: u + s (c - u) on the first channels, in both halves.

        Args:
            x: (2 B, in_channels, H, W); the second half is not read.
            t: (2 B,).
            y: (2 B,): labels, then "no class".
            cfg_scale: s.
            guidance_channels: how many channels are guided; 3 is what the authors' numbers come
                from, whatever the latent's channels. The others stay each half's own.

        Returns:
            (2 B, outputs, H, W).

        Source: u_dit sheet 4.3.
        """
        half = x[: len(x) // 2]
        out = self(torch.cat([half, half]), t, y)
        guided, rest = out[:, :guidance_channels], out[:, guidance_channels:]
        conditional, unconditional = guided.chunk(2)
        guided = unconditional + cfg_scale * (conditional - unconditional)
        return torch.cat([torch.cat([guided, guided]), rest], dim=1)
