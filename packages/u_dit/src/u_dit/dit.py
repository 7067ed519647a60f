"""DiT, the isotropic transformer that U-DiT is compared with, in the layout of its authors.

Source: Peebles and Xie, ICCV 2023 (arXiv 2212.09748); u_dit sheet 3.12.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers_shared.diffusion.udit_unet import LabelEmbedder, TimestepEmbedder, adaln_modulation


@dataclass(frozen=True)
class DiTConfig:
    """A DiT, in the argument names and with the defaults of its authors' class.

    Attributes:
        input_size: side of the latents; positions are made for it.
        patch_size: side of the pixels that make a token.
        in_channels, hidden_size, num_heads, mlp_ratio, num_classes, learn_sigma: as of U-DiT.
        depth: blocks.
        class_dropout_prob: share of labels that training replaces by "no class".
    """

    input_size: int = 32
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    class_dropout_prob: float = 0.1
    num_classes: int = 1000
    learn_sigma: bool = True

    @classmethod
    def of(cls, config: DiTConfig | Mapping[str, Any]) -> DiTConfig:
        """From a mapping.

        Raises:
            ValueError: an option is unknown.
        """
        if isinstance(config, DiTConfig):
            return config
        known = [f.name for f in fields(cls)]
        if unknown := [name for name in config if name not in known]:
            raise ValueError(f"unknown network option {unknown[0]!r}; known: {', '.join(known)}")
        return cls(**config)

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping that ``of`` reads back."""
        return asdict(self)

    @property
    def alignment(self) -> int:
        """Height and width of a latent have to be multiples of this."""
        return self.patch_size


def sincos_positions(side: int, dim: int) -> Tensor:
    """Fixed positions (1, side^2, dim): columns, then rows, each [sin | cos].

    Frequencies are ``10000^(-i / (dim / 4))``.
    """
    steps = torch.arange(dim // 4, dtype=torch.float64)
    angles = torch.arange(side)[:, None] * 10000 ** (-steps / (dim // 4))
    one = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = one.repeat(side, 1), one.repeat_interleave(side, 0)
    return torch.cat([columns, rows], dim=1).float()[None]


class _Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def _modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    x = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return x * (1 + scale[:, None]) + shift[:, None]


class DiTBlock(nn.Module):
    """Attention and feed-forward net with adaLN-zero on tokens (B, N, C)."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float) -> None:
        super().__init__()
        self.attn = _Attention(dim, num_heads)
        self.mlp = _Mlp(dim, int(dim * mlp_ratio))
        self.adaLN_modulation = adaln_modulation(dim, 6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(B, N, C) and (B, C) to (B, N, C)."""
        h1, s1, g1, h2, s2, g2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + g1[:, None] * self.attn(_modulated_norm(x, h1, s1))
        return x + g2[:, None] * self.mlp(_modulated_norm(x, h2, s2))


class _Patches(nn.Module):
    def __init__(self, inputs: int, dim: int, side: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, dim, side, stride=side)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).mT


class _FinalLayer(nn.Module):
    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, outputs)
        self.adaLN_modulation = adaln_modulation(dim, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.linear(_modulated_norm(x, *self.adaLN_modulation(c).chunk(2, dim=1)))


class DiT(nn.Module):
    """Predicts noise, and with ``learn_sigma`` its variance, from a noisy latent, step and class.

    Attributes:
        options: the configuration.
    """

    def __init__(self, config: DiTConfig | Mapping[str, Any]) -> None:
        super().__init__()
        config = DiTConfig.of(config)
        dim, self.options = config.hidden_size, config
        if config.input_size % config.patch_size:
            raise ValueError(
                f"input_size={config.input_size} is no multiple of patch_size={config.patch_size}"
            )
        outputs = config.in_channels * (2 if config.learn_sigma else 1)
        side = config.input_size // config.patch_size
        self.pos_embed = nn.Parameter(sincos_positions(side, dim), requires_grad=False)
        self.x_embedder = _Patches(config.in_channels, dim, config.patch_size)
        self.t_embedder = TimestepEmbedder(dim)
        null_label = config.class_dropout_prob > 0
        self.y_embedder = LabelEmbedder(config.num_classes, dim, null_label=null_label)
        self.blocks = nn.ModuleList(
            DiTBlock(dim, config.num_heads, mlp_ratio=config.mlp_ratio) for _ in range(config.depth)
        )
        self.final_layer = _FinalLayer(dim, config.patch_size**2 * outputs)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
                if "adaLN_modulation" in name or name == "final_layer.linear":
                    nn.init.zeros_(module.weight)
                if name.startswith("t_embedder"):
                    nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        if self.x_embedder.proj.bias is not None:
            nn.init.zeros_(self.x_embedder.proj.bias)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Arguments and result as of ``UDiTUNet.forward``, for latents of ``input_size`` alone.

        Raises:
            ValueError: the latent has another size.
        """
        options = self.options
        if x.shape[2:] != (options.input_size, options.input_size):
            raise ValueError(
                f"a latent of {x.shape[2]}x{x.shape[3]}: this DiT was made for "
                f"{options.input_size}x{options.input_size}"
            )
        if self.training and options.class_dropout_prob > 0:
            drawn = torch.rand(y.shape, generator=generator, device=y.device)
            y = y.masked_fill(drawn < options.class_dropout_prob, options.num_classes)
        c = self.t_embedder(t) + self.y_embedder(y)
        tokens = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, c)
        p, side = options.patch_size, options.input_size // options.patch_size
        pixels = self.final_layer(tokens, c).unflatten(2, (p, p, -1)).unflatten(1, (side, side))
        return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def _dit(dim: int, depth: int, heads: int, patch_size: int) -> DiTConfig:
    return DiTConfig(hidden_size=dim, depth=depth, num_heads=heads, patch_size=patch_size)


DIT_VARIANTS: dict[str, DiTConfig] = {
    f"DiT-{name}/{patch_size}": _dit(dim, depth, heads, patch_size)
    for name, dim, depth, heads in (
        ("S", 384, 12, 6),
        ("B", 768, 12, 12),
        ("L", 1024, 24, 16),
        ("XL", 1152, 28, 16),
    )
    for patch_size in (2, 4, 8)
}
