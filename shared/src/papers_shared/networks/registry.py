"""The published networks by name: how each is built, its weights, what others report of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from papers_shared import assets, checkpoints
from papers_shared._basicsr import basicsr_module
from papers_shared.networks.carn import CARNM
from papers_shared.networks.efdn import EFDN
from papers_shared.networks.elan import ELAN
from papers_shared.networks.imdn import IMDN
from papers_shared.networks.published import PUBLISHED, Published
from papers_shared.networks.rfdn import BSRN, RFDN
from papers_shared.networks.rlfn import RLFN


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One network at one scale.

    Attributes:
        title: as papers print it.
        scale: of the enlargement.
        build: makes the network with fresh weights, in its own value range.
        source: of the architecture.
        value_range: what the network calls white: 1 or 255.
        multiple: the sides of its input must be multiples of this.
        asset: the catalogue's name of its weights; empty where there are none at hand.
        weights: where the authors' weights are had, where ``asset`` is empty.
        recomputed: last names of buffers that its file leaves out, since they are computed.
        requires: Python modules beyond those of papers_shared.
        seconds_per_megapixel: of input, about, on two CPU cores; for budgets.
        published: test set -> printed values, of these very weights.
    """

    title: str
    scale: int
    build: Callable[[], nn.Module]
    source: str
    value_range: float = 1.0
    multiple: int = 1
    asset: str = ""
    weights: str = ""
    recomputed: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    seconds_per_megapixel: float = 100.0
    published: Mapping[str, Published] = field(default_factory=dict)


class SuperResolver(nn.Module):
    """A published network with its value range and padding handled.

    Args:
        network: takes and gives ``value_range``.
        scale: of the enlargement.
        value_range: what the network calls white.
        multiple: the input is continued to multiples of it, mirrored, on the right and below.
    """

    def __init__(
        self, network: nn.Module, *, scale: int, value_range: float = 1.0, multiple: int = 1
    ) -> None:
        super().__init__()
        self.network, self.scale = network, scale
        self.value_range, self.multiple = value_range, multiple

    def forward(self, x: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in [0, 1] -> (B, 3, scale * H, scale * W), about [0, 1], not clamped."""
        height, width = x.shape[-2:]
        below, right = -height % self.multiple, -width % self.multiple
        if below or right:
            mode = "reflect" if below < height and right < width else "replicate"
            x = F.pad(x, (0, right, 0, below), mode=mode)
        out = self.network(x * self.value_range) / self.value_range
        return out[..., : height * self.scale, : width * self.scale]


def build(name: str) -> SuperResolver:
    """The network ``name`` with fresh weights, in eval mode.

    Raises:
        ValueError: there is no such network.
        ImportError: a package that holds it is not installed.
    """
    entry = describe(name)
    network = SuperResolver(
        entry.build(), scale=entry.scale, value_range=entry.value_range, multiple=entry.multiple
    )
    return network.eval()


def load(name: str, *, path: Path | str | None = None) -> SuperResolver:
    """The network ``name`` with its published weights, in eval mode, frozen.

    Args:
        name: of ``NETWORKS``.
        path: a file of weights in the authors' layout, instead of the catalogue's.

    Raises:
        ValueError: there is no such network, or the file does not fit it.
        FileNotFoundError: the weights are not on this machine; says where they are had.
        ImportError: a package that holds the network is not installed.
    """
    entry = describe(name)
    if path is None and not entry.asset:
        raise FileNotFoundError(
            f"no weights of {name} are in the catalogue; get {entry.weights or 'its weights'} and "
            f"pass path=FILE, or build({name!r}) for fresh weights"
        )
    file = Path(path) if path is not None else assets.fetch(entry.asset).path
    model = build(name)
    state = checkpoints.load_state_dict(file)
    for key, value in model.network.state_dict().items():
        if key not in state and key.rpartition(".")[2] in entry.recomputed:
            state[key] = value
    checkpoints.load_strict(model.network, state, what=f"{file.name} ({name})")
    return model.requires_grad_(False)


def describe(name: str) -> Entry:
    """The entry called ``name``.

    Raises:
        ValueError: there is none; says which are.
    """
    if name not in NETWORKS:
        raise ValueError(f"no network is called {name!r}; known: {', '.join(NETWORKS)}")
    return NETWORKS[name]


# ----------------------------------------------------------------- through other libraries


def _spandrel(architecture: str, **arguments: Any) -> nn.Module:
    import importlib

    try:
        module = importlib.import_module(f"spandrel.architectures.{architecture}")
    except ImportError as error:
        raise ImportError(
            f"{architecture} comes from the package spandrel ({error}): "
            "pip install 'papers-shared[networks]'"
        ) from None
    return getattr(module, architecture)(**arguments)


def _dat_light(scale: int) -> nn.Module:
    """Source: DAT (Chen et al., arXiv 2308.03364), supplement, DAT-light."""
    return _spandrel(
        "DAT",
        upscale=scale,
        img_size=64,
        embed_dim=60,
        depth=[18],
        num_heads=[6],
        expansion_factor=2,
        split_size=[8, 32],
        resi_connection="3conv",
        upsampler="pixelshuffledirect",
    )


def _span(scale: int) -> nn.Module:
    # SPAN carries its own mean and multiplies by its own range.
    return _spandrel("SPAN", num_in_ch=3, num_out_ch=3, feature_channels=48, upscale=scale)


def _basicsr(module: str, name: str, **arguments: Any) -> nn.Module:
    return getattr(basicsr_module(f"archs.{module}"), name)(**arguments)


def _edsr(scale: int, *, channels: int, blocks: int, res_scale: float) -> nn.Module:
    # Values are in [0, 1], the mean subtracted in levels of 255, as basicsr trains it.
    return _basicsr(
        "edsr_arch",
        "EDSR",
        num_in_ch=3,
        num_out_ch=3,
        num_feat=channels,
        num_block=blocks,
        upscale=scale,
        res_scale=res_scale,
    )


def _swinir_light(scale: int) -> nn.Module:
    return _basicsr(
        "swinir_arch",
        "SwinIR",
        upscale=scale,
        img_size=64,
        window_size=8,
        depths=(6, 6, 6, 6),
        embed_dim=60,
        num_heads=(6, 6, 6, 6),
        mlp_ratio=2.0,
        upsampler="pixelshuffledirect",
    )


def _rrdbnet() -> nn.Module:
    return _basicsr("rrdbnet_arch", "RRDBNet", num_in_ch=3, num_out_ch=3, scale=4)


def _srvgg() -> nn.Module:
    return _basicsr("srvgg_arch", "SRVGGNetCompact", num_conv=16, upscale=4)


# ----------------------------------------------------------------------------- the networks


def _networks() -> dict[str, Entry]:
    found: dict[str, Entry] = {}

    def add(name: str, title: str, make: Callable[[], nn.Module], **rest: Any) -> None:
        published = PUBLISHED.get(name, {})
        found[name] = Entry(title=title, build=make, published=published, **rest)

    def at(make: Callable[..., nn.Module], scale: int, **arguments: Any) -> Callable[[], nn.Module]:
        return lambda: make(scale, **arguments)

    for s in (2, 3, 4):
        add(
            f"dat_light_x{s}",
            f"DAT-light x{s}",
            at(_dat_light, s),
            scale=s,
            source="arXiv 2308.03364, through spandrel",
            asset=f"dat_light_x{s}",
            recomputed=("relative_position_index", "rpe_biases", "attn_mask_0", "attn_mask_1"),
            requires=("spandrel",),
            seconds_per_megapixel=1000.0,
        )
    for s in (2, 3, 4):
        add(
            f"bsrn_x{s}",
            f"BSRN x{s}",
            at(BSRN, s),
            scale=s,
            source="arXiv 2205.05996",
            asset=f"bsrn_x{s}",
        )
    for s in (2, 4):
        add(
            f"rlfn_x{s}",
            f"RLFN x{s}",
            at(RLFN, s),
            scale=s,
            source="arXiv 2205.07514",
            value_range=255.0,
            asset=f"rlfn_x{s}",
        )
    add(
        "rfdn_aim_x4",
        "RFDN x4 (challenge model)",
        at(RFDN, 4),
        scale=4,
        source="arXiv 2009.11551",
        value_range=255.0,
        asset="rfdn_aim_x4",
    )
    add(
        "imdn_baseline_x4",
        "IMDN x4 (challenge baseline)",
        at(IMDN, 4),
        scale=4,
        source="arXiv 1909.11856",
        asset="imdn_baseline_x4",
    )
    add("efdn_x4", "EFDN x4", at(EFDN, 4), scale=4, source="Wang, CVPRW 2022", asset="efdn_x4")
    for s in (2, 3, 4):
        add(
            f"carn_m_x{s}",
            f"CARN-M x{s}",
            at(CARNM, s),
            scale=s,
            source="arXiv 1803.08664",
            asset="carn_m_x2x3x4",
        )
    add(
        "realesrgan_x4plus",
        "Real-ESRGAN x4plus (RRDBNet)",
        _rrdbnet,
        scale=4,
        source="arXiv 2107.10833, through basicsr",
        asset="realesrgan_x4plus_fp16",
        requires=("basicsr",),
        seconds_per_megapixel=1500.0,
    )
    add(
        "realesr_animevideov3_x4",
        "Real-ESRGAN animevideov3 (SRVGGNetCompact)",
        _srvgg,
        scale=4,
        source="arXiv 2107.10833, through basicsr",
        asset="realesr_animevideov3_x4_fp16",
        requires=("basicsr",),
    )
    edsr = "arXiv 1707.02921, through basicsr"
    for s, medium, large in (
        (2, "Mx2_f64b16_DIV2K_official-3ba7b086", "Lx2_f256b32_DIV2K_official-be38e77d"),
        (3, "Mx3_f64b16_DIV2K_official-6908f88a", "Lx3_f256b32_DIV2K_official-3660f70d"),
        (4, "Mx4_f64b16_DIV2K_official-0c287733", "Lx4_f256b32_DIV2K_official-76ee1c8f"),
    ):
        add(
            f"edsr_baseline_x{s}",
            f"EDSR-baseline x{s}",
            at(_edsr, s, channels=64, blocks=16, res_scale=1.0),
            scale=s,
            source=edsr,
            weights=f"EDSR_{medium}.pth of basicsr's model zoo",
            requires=("basicsr",),
        )
        add(
            f"edsr_x{s}",
            f"EDSR x{s}",
            at(_edsr, s, channels=256, blocks=32, res_scale=0.1),
            scale=s,
            source=edsr,
            weights=f"EDSR_{large}.pth of basicsr's model zoo",
            requires=("basicsr",),
            seconds_per_megapixel=4000.0,
        )
        add(
            f"swinir_light_x{s}",
            f"SwinIR-light x{s}",
            at(_swinir_light, s),
            scale=s,
            source="arXiv 2108.10257, through basicsr",
            multiple=8,
            weights=(
                f"002_lightweightSR_DIV2K_s64w8_SwinIR-S_x{s}.pth of the releases of "
                "github.com/JingyunLiang/SwinIR"
            ),
            requires=("basicsr",),
            seconds_per_megapixel=500.0,
        )
        add(
            f"elan_light_x{s}",
            f"ELAN-light x{s}",
            at(ELAN, s),
            scale=s,
            source="arXiv 2203.06697; names inside are ours, the authors' file does not load",
            multiple=16,
            weights="no file in this layout",
        )
        if s != 3:
            add(
                f"span_x{s}",
                f"SPAN x{s}",
                at(_span, s),
                scale=s,
                source="arXiv 2311.12770, through spandrel",
                weights=f"spanx{s}_ch48.pth of github.com/hongyuanyu/SPAN",
                requires=("spandrel",),
            )
    return found


NETWORKS: dict[str, Entry] = _networks()
