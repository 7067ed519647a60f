"""The network: blocks of 3x3 convolutions with one window attention for six of them.

A block has neither MLP nor layer norm. Each of its sub-blocks is three residual pairs of 3x3
convolutions (HRM) and one self-attention (NVSM-SA) of two halves of the channels: one in dense
windows, one in windows of twice the side of which every second row and column is taken. Module
names are the authors', so state dicts of their code load as they are.

Source: LIPT, IEEE TIP 34 (2025); lipt sheet 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipt.hrm import ConvBN, DiverseBranchBlock
from papers_shared.kernels.nvsm import Shared, nvsm_attention, nvsm_shared
from papers_shared.kernels.nvsm_layout import MASKS, PAD_TYPES, Group, mask_positions

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K
BRANCHES = ("hrm", "dbb", "plain")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A network, in the argument names of the recordings; defaults are the authors'.

    Attributes:
        scale: 1 (denoising, JPEG), 2, 3 or 4; any integer from 1 up.
        colors: 3, or 1 (ours: grey, without the mean shift).
        rgb_range: largest value of input and output.
        m_elan: sub-blocks in all; what 1 + n_share does not divide is left out.
        c_elan: width C, even.
        n_share: further sub-blocks of a block that reuse its attention maps.
        r_expand: width inside HRM is r_expand * C.
        window_sizes: at least two; the first two are the dense and the sparse group's, all of them
            count for padding.
        deploy: merged form: single convolutions, no batch norm.
        mask: which pixels the second group takes.
        mask_seed: of the mask "random"; block i takes mask_seed + i.
        pad_type: what stands below the last rows for the mask.
        restore_positions: undo the mask's permutation after attention (ours; the authors leave the
            pixels displaced). A sub-block undoes what it did to its own input.
        mask_values: mask the values of sub-blocks that reuse maps, too (ours).
        branches: of an HRM convolution in training: "hrm", "dbb" (no Sobel) or "plain" (one 3x3
            convolution). The merged network is the same.
        residual: add the input to the output, at scale 1 (ours).
    """

    scale: int = 2
    colors: int = 3
    rgb_range: float = 255
    m_elan: int = 6
    c_elan: int = 32
    n_share: int = 1
    r_expand: int = 1
    window_sizes: tuple[int, ...] = (8, 8)
    deploy: bool = False
    mask: Literal["sparse", "dense", "sector", "random"] = "sparse"
    mask_seed: int = 0
    pad_type: Literal["sparse", "zero_pad", "ref_pad"] = "sparse"
    restore_positions: bool = False
    mask_values: bool = False
    branches: Literal["hrm", "dbb", "plain"] = "hrm"
    residual: bool = False

    def __post_init__(self) -> None:
        choices: dict[str, tuple[Any, ...]] = {
            "colors": (1, 3),
            "mask": MASKS,
            "pad_type": PAD_TYPES,
            "branches": BRANCHES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                known = ", ".join(map(str, allowed))
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {known}")
        for name, least in (("scale", 1), ("m_elan", 1), ("c_elan", 2), ("n_share", 0),
                            ("r_expand", 1)):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} {value!r}: expected an integer from {least} up")
        if self.c_elan % 2:
            raise ValueError(f"c_elan {self.c_elan}: expected an even width, for two groups")
        if not self.rgb_range > 0:
            raise ValueError(f"rgb_range {self.rgb_range!r}: expected a positive number")
        if not self.blocks:
            raise ValueError(
                f"m_elan {self.m_elan} with n_share {self.n_share} gives no block; expected m_elan "
                f"of at least {1 + self.n_share}"
            )
        if len(self.window_sizes) < 2:
            raise ValueError(f"window_sizes {self.window_sizes}: expected two or more")
        if self.residual and self.scale != 1:
            raise ValueError(f"residual with scale {self.scale}: expected scale 1")
        self.groups(0)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.m_elan // (1 + self.n_share)

    @property
    def multiple(self) -> int:
        """What height and width are padded to a multiple of."""
        return math.lcm(*self.window_sizes)

    def groups(self, block: int, *, shared: bool = False) -> tuple[Group, Group]:
        """How the two groups of channels are cut into windows.

        Args:
            block: its number; every second one is shifted by half a window.
            shared: of a sub-block that reuses attention maps.

        Raises:
            ValueError: there is no such mask for the window, or it cannot be undone.
        """
        dense, sparse = self.window_sizes[:2]
        positions = mask_positions(self.mask, sparse, seed=self.mask_seed + block)
        masked = not shared or self.mask_values
        return (
            Group(dense, shift=block % 2 * (dense // 2)),
            Group(
                sparse,
                shift=block % 2 * (sparse // 2),
                positions=positions if masked else None,
                pad_type=self.pad_type,
                restore=self.restore_positions,
            ),
        )

    @classmethod
    def of(cls, config: Config | Mapping[str, Any]) -> Config:
        """From a mapping; lists become tuples.

        Raises:
            ValueError: a key is unknown or a value is one that no network has.
        """
        if isinstance(config, Config):
            return config
        known = [f.name for f in fields(cls)]
        if unknown := [key for key in config if key not in known]:
            raise ValueError(f"unknown network option {unknown[0]!r}; known: {', '.join(known)}")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in config.items()
        }
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping that ``of`` reads back."""
        return asdict(self)


class MeanShift(nn.Conv2d):
    """Takes DIV2K's mean colour away (sign -1) or adds it (sign 1); frozen."""

    def __init__(self, rgb_range: float, *, sign: int) -> None:
        super().__init__(3, 3, 1)
        self.weight.data = torch.eye(3).view(3, 3, 1, 1)
        self.bias = nn.Parameter(sign * rgb_range * torch.tensor(RGB_MEAN))
        self.requires_grad_(False)


class HRM(nn.Module):
    """Two 3x3 convolutions with a ReLU between them, C -> r_expand * C -> C."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, inner = config.c_elan, config.c_elan * config.r_expand
        self.conv0 = _conv3x3(config, width, inner)
        self.conv1 = _conv3x3(config, inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.conv1(F.relu(self.conv0(x)))


def _conv3x3(config: Config, inputs: int, outputs: int) -> nn.Module:
    if config.deploy or config.branches == "plain":
        return nn.Conv2d(inputs, outputs, 3, padding=1)
    return DiverseBranchBlock(inputs, outputs, sobel=config.branches == "hrm")


class NVSMSelfAttention(nn.Module):
    """Attention in dense windows for half of the channels, in sparse ones for the other half.

    Args:
        config: of the network.
        block: number of the block it stands in.
        shared: it takes attention maps instead of making them, and projects values alone.

    Attributes:
        share: whether it returns its maps; set by the block where a sub-block reuses them.
        backend: of ``papers_shared.kernels.nvsm``.
    """

    def __init__(self, config: Config, *, block: int, shared: bool) -> None:
        super().__init__()
        width = config.c_elan
        made = width if shared else 2 * width
        self.project_inp: nn.Module = (
            nn.Conv2d(width, made, 1) if config.deploy else ConvBN(width, made)
        )
        self.project_out = nn.Conv2d(width, width, 1)
        self.groups = config.groups(block, shared=shared)
        self.shared = shared
        self.share = config.n_share > 0
        self.backend = "auto"

    def forward(self, x: Tensor, maps: Shared | None = None) -> tuple[Tensor, Shared | None]:
        """Attention of x, or with the maps of an earlier sub-block.

        Args:
            x: (B, C, H, W); H and W multiples of the windows.
            maps: what the first sub-block returned; for shared ones.

        Returns:
            (B, C, H, W), not added to x, and the maps (None where nobody reuses them).

        Raises:
            ValueError: a shared one without maps.
        """
        values = self.project_inp(x)
        if not self.shared:
            y, maps = nvsm_attention(values, self.groups, share=self.share, backend=self.backend)
        elif maps is None:
            raise ValueError("this attention reuses maps; expected those of the block's first one")
        else:
            y = nvsm_shared(values, maps, self.groups)
        return self.project_out(y), maps


class LIPTB(nn.Module):
    """A block: 1 + n_share sub-blocks that share one pair of attention maps."""

    def __init__(self, config: Config, block: int) -> None:
        super().__init__()
        count = range(1 + config.n_share)

        def hrms(letter: str) -> nn.ModuleDict:
            return nn.ModuleDict({f"lcs_{letter}_{j}": HRM(config) for j in count})

        self.modules_hrm_a = hrms("a")
        self.modules_hrm_c = hrms("c")
        self.modules_nvsm_sa = nn.ModuleDict(
            {f"smmsa_{j}": NVSMSelfAttention(config, block=block, shared=j > 0) for j in count}
        )
        self.modules_hrm_b = hrms("b")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        maps = None
        for hrm_a, hrm_c, attention, hrm_b in zip(
            self.modules_hrm_a.values(),
            self.modules_hrm_c.values(),
            self.modules_nvsm_sa.values(),
            self.modules_hrm_b.values(),
            strict=True,
        ):
            x = x + hrm_a(x)
            x = x + hrm_c(x)
            y, maps = attention(x, maps)
            x = x + y
            x = x + hrm_b(x)
        return x


class LIPT(nn.Module):
    """Head, blocks, a residual around them, and a tail that enlarges by pixel shuffle."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width, colors, scale = config.c_elan, config.colors, config.scale
        shifts = colors == 3
        self.sub_mean = MeanShift(config.rgb_range, sign=-1) if shifts else nn.Identity()
        self.add_mean = MeanShift(config.rgb_range, sign=1) if shifts else nn.Identity()
        self.head = nn.Sequential(nn.Conv2d(colors, width, 3, padding=1))
        self.body = nn.Sequential(*(LIPTB(config, i) for i in range(config.blocks)))
        self.tail = nn.Sequential(nn.Conv2d(width, colors * scale**2, 3, padding=1))
        if scale > 1:
            self.tail.append(nn.PixelShuffle(scale))

    @property
    def alignment(self) -> int:
        """Pictures are padded to multiples of this many pixels inside ``forward``."""
        return self.config.multiple

    def forward(self, x: Tensor) -> Tensor:
        """(B, colors, H, W) in 0..rgb_range -> (B, colors, scale * H, scale * W), not clamped.

        Any size: it is padded to whole windows by reflection, by replication along a side that is
        too short for that.

        Raises:
            ValueError: another number of channels.
        """
        if x.dim() != 4 or x.shape[1] != self.config.colors:
            raise ValueError(
                f"input of shape {tuple(x.shape)}: expected (batch, {self.config.colors}, height, "
                "width)"
            )
        height, width = x.shape[2:]
        padded = pad_to_multiple(x, self.config.multiple)
        if x.device.type == "cpu":  # convolutions are as fast, attention is faster
            padded = padded.contiguous(memory_format=torch.channels_last)
        features = self.head(self.sub_mean(padded))
        y = self.add_mean(self.tail(self.body(features) + features))
        y = y[:, :, : height * self.config.scale, : width * self.config.scale]
        return x + y if self.config.residual else y


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad at the right and the bottom up to a multiple, by reflection, else by replication.

    Args:
        x: (B, C, H, W). Reflection needs a side longer than what is added to it.
        multiple: that both sides shall have.
    """
    right, bottom = -x.shape[3] % multiple, -x.shape[2] % multiple
    for added, side, pads in (
        (right, x.shape[3], (0, right, 0, 0)),
        (bottom, x.shape[2], (0, 0, 0, bottom)),
    ):
        if added:
            x = F.pad(x, pads, mode="reflect" if added < side else "replicate")
    return x


def set_attention_backend(network: nn.Module, backend: str) -> None:
    """Choose the backend of every attention of a network, see ``papers_shared.kernels.nvsm``."""
    for module in network.modules():
        if isinstance(module, NVSMSelfAttention):
            module.backend = backend


def build(config: Config | Mapping[str, Any]) -> LIPT:
    """The network that ``config`` describes, with fresh weights; in training form unless deploy.

    Args:
        config: a ``Config``, a mapping of its fields, or an entry of ``VARIANTS``.

    Raises:
        ValueError: an option is unknown or has a value that no network has.
    """
    return LIPT(Config.of(config))


def _variants() -> dict[str, Config]:
    tiny = Config(m_elan=6, c_elan=32)  # inferred from the paper's counts
    small = Config(m_elan=12, c_elan=64)  # x3 and x4, inferred from the paper's counts (exact)
    base = Config(m_elan=22, c_elan=144, n_share=0, window_sizes=(16, 16))
    made = {}
    for name, config in (("tiny", tiny), ("small", small), ("base", base)):
        for scale in (2, 3, 4):
            made[f"{name}_x{scale}"] = replace(config, scale=scale)
    made["small_x2"] = replace(small, m_elan=10)  # lightx2.yml
    made["tiny_released_x2"] = Config(m_elan=8, c_elan=24)  # tinyx2.yml
    # The paper's other tasks; their width and depth were not released: inferred.
    for name, config in (("tiny", tiny), ("small", small)):
        made[f"{name}_denoise"] = replace(config, scale=1)
        made[f"{name}_jpeg"] = replace(config, scale=1, colors=1)
    # Ours, for training on one processor: plain convolutions, which train three times as fast.
    mini = Config(m_elan=4, c_elan=64, branches="plain")
    made["mini_x4"] = replace(mini, scale=4)
    made["mini_denoise"] = replace(mini, scale=1, residual=True)
    made["mini_jpeg"] = replace(mini, scale=1, colors=1, residual=True)
    return made


# Source: lipt sheet 3.7, which says of each whether it is the authors' or inferred.
VARIANTS: dict[str, Config] = _variants()
