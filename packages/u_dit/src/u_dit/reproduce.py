"""A recipe for every row of the tables that can be computed (see papers_shared.tables)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch

from papers_shared.complexity import count_macs, count_parameters
from papers_shared.tables.claims import ahead
from papers_shared.tables.command import run_reproduce
from papers_shared.tables.recipe import Claim, Context, Measured, Recipe, Table
from u_dit.attention import DownsampledAttention
from u_dit.counting import elementwise, macs, on_meta
from u_dit.dit import DIT_VARIANTS, DiTConfig
from u_dit.model import VARIANTS, Config
from u_dit.recipes import NETWORKS, SMALL, pictures_themselves, shipped, small_training

main = partial(run_reproduce, paper="u_dit")

GIGA = 1e9
EVERY: Mapping[str, Config | DiTConfig] = {**VARIANTS, **DIT_VARIANTS}
# Rows whose cost can be counted: table -> row -> network.
COUNTED: Mapping[str, Mapping[str, str]] = {
    "table1": {
        "dit_s_4": "DiT-S/4",
        "dit_unet": "DiT-UNet",
        "dit_unet_kv": "DiT-UNet-kv",
        "dit_unet_token": "U-DiT-T",
    },
    "table2": {
        "dit_s_2_ours": "DiT-S/2",
        "u_dit_s": "U-DiT-S",
        "dit_l_4_ours": "DiT-L/4",
        "dit_b_2_ours": "DiT-B/2",
        "u_dit_b": "U-DiT-B",
        "dit_l_2_ours": "DiT-L/2",
        "dit_xl_2_ours": "DiT-XL/2",
        "u_dit_l": "U-DiT-L",
    },
    "table3": {"dit_xl_2": "DiT-XL/2", "u_dit_b": "U-DiT-B", "u_dit_l": "U-DiT-L"},
    "table4": {
        "dit_l_2_ours": "DiT-L/2",
        "dit_xl_2_ours": "DiT-XL/2",
        "u_dit_b": "U-DiT-B",
        "u_dit_l": "U-DiT-L",
    },
    "table6": {"dit_xl_2_ours": "DiT-XL/2", "u_dit_b": "U-DiT-B"},
    "table7": {
        "pixel_shuffle": "U-DiT-T-pixelshuffle",
        "dwconv": "U-DiT-T-dwconv",
        "dwconv_shortcut": "U-DiT-T",
    },
    "table9": {
        "dit_unet_slim": "DiT-UNet-Slim",
        "dit_unet": "DiT-UNet",
        "u_dit_t": "U-DiT-T",
        "cosine": "U-DiT-T-cosine",
        "rope": "U-DiT-T-rope",
        "dwconv_ffn": "U-DiT-T-dwconv-ffn",
        "reparam": "U-DiT-T-all",
    },
    "table10": {
        "u_dit_s_vanilla": "U-DiT-S-vanilla",
        "u_dit_s": "U-DiT-S",
        "u_dit_b_vanilla": "U-DiT-B-vanilla",
        "u_dit_b": "U-DiT-B",
        "u_dit_l_vanilla": "U-DiT-L-vanilla",
        "u_dit_l": "U-DiT-L",
    },
}
SIDES = {"table6": 64}  # of the latents; 32 elsewhere


def gflops(context: Context, *, variant: str, side: int) -> dict[str, Measured]:
    """The paper's GFLOPs: multiply-accumulates, element-wise ones too, fused."""
    config = EVERY[variant]
    if side != config.input_size:
        config = replace(config, input_size=side)
    model = on_meta(config, fused=True)
    counted = macs(model, config.in_channels, side) + elementwise(config, side)
    return {"gflops": Measured(counted / GIGA)}


def size(context: Context, *, variant: str) -> dict[str, Measured]:
    """Parameters and multiply-accumulates of a network, in training form and fused."""
    config = VARIANTS[variant]
    model, fused = on_meta(config), on_meta(config, fused=True)
    plain, plain_512 = macs(fused, 4, 32), macs(fused, 4, 64)
    return {
        "params": Measured(count_parameters(fused) / 1e6),
        "params_file": Measured(count_parameters(model) / 1e6),
        "gflops": Measured((plain + elementwise(config, 32)) / GIGA),
        "macs": Measured(plain / GIGA),
        "macs_unfused": Measured(macs(model, 4, 32) / GIGA),
        "gflops_512": Measured((plain_512 + elementwise(config, 64)) / GIGA),
    }


def attention_cost(context: Context, *, down_factor: int) -> dict[str, Measured]:
    """Multiply-accumulates of the products of attention, projections left out."""
    cost = {}
    for side in (32, 64):
        with torch.device("meta"):
            model = DownsampledAttention(96, 4, down_factor=down_factor, downsampler="none")
        counted = count_macs(model, (1, 96, side, side), rule="flop_counter")
        projections = side**2 * 4 * 96**2
        cost[f"side_{side}"] = Measured((counted.total // 2 - projections) / 1e6)
    return cost


def fusing(context: Context, *, variant: str) -> dict[str, Measured]:
    """Largest difference of the fused network's output, in units of the largest value."""
    from u_dit.model import build, fuse

    torch.manual_seed(context.seed)
    model = build(replace(VARIANTS[variant], num_classes=10)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the authors' start gives 0 everywhere
            parameter.normal_(std=max(1, parameter[0].numel()) ** -0.5)
        x, t, y = torch.randn(1, 4, 32, 32), torch.tensor([500]), torch.tensor([3])
        output = model(x, t, y)
        difference = (fuse(model)(x, t, y) - output).abs().max() / output.abs().max()
    return {"difference": Measured(difference.item())}


_EXACT = partial(Recipe, scale="exact", seconds=15)

TABLES: dict[str, Table] = {
    **{
        table: Table(
            {
                row: _EXACT(partial(gflops, variant=variant, side=SIDES.get(table, 32)))
                for row, variant in rows.items()
            }
        )
        for table, rows in COUNTED.items()
    },
    "table8": Table(
        {
            f"u_dit_{name.lower()}": _EXACT(partial(size, variant=f"U-DiT-{name}"), seconds=40)
            for name in "SBL"
        }
    ),
    "attention": Table(
        {
            "token": _EXACT(partial(attention_cost, down_factor=2)),
            "full": _EXACT(partial(attention_cost, down_factor=1)),
        },
        claims=[
            Claim(
                "token downsampling quarters the cost of attention, whatever the size",
                lambda r: all(
                    4 * r["token"][c].value == r["full"][c].value for c in ("side_32", "side_64")
                ),
            )
        ],
    ),
    "fusing": Table(
        {"u_dit_t": _EXACT(partial(fusing, variant="U-DiT-T-all"))},
        claims=[
            Claim(
                "fusing changes the output by less than 1e-5 of its largest value",
                lambda r: r["u_dit_t"]["difference"].value < 1e-5,
            )
        ],
    ),
}
CIFAR = ("cifar10_train", "cifar10_test", "cifar10_resnet20")
SHIPPED = {"held_out": 1000, "samples": 1000, "sampling_steps": 20, "guidance": 1.5}


_lower_error = partial(ahead, columns=("noise_mse",), smaller=True)

TABLES["small"] = Table(
    {
        row: Recipe(
            small_training,
            scale="small",
            seconds=240,
            assets=CIFAR,
            settings={**SMALL, "network": network.to_dict()},
        )
        for row, network in NETWORKS.items()
    },
    claims=[
        Claim(
            "token downsampling: a smaller error than an isotropic DiT of no less operations",
            _lower_error("u_dit_t", "dit"),
        ),
        Claim(
            "token downsampling: a smaller error than full attention at equal operations (slim)",
            _lower_error("u_dit_t", "dit_unet_slim"),
        ),
        Claim(
            "token downsampling: a smaller error than full attention at equal width",
            _lower_error("u_dit_t", "dit_unet"),
        ),
        Claim(
            "the depthwise convolution before it helps token downsampling",
            _lower_error("u_dit_t", "pixel_shuffle"),
        ),
        Claim("cosine attention and RoPE2D help", _lower_error("rope", "u_dit_t")),
        Claim("the depthwise feed-forward net helps", _lower_error("dwconv_ffn", "rope")),
        Claim("re-parameterisation helps", _lower_error("reparam", "dwconv_ffn")),
    ],
)
TABLES["shipped"] = Table(
    {
        "cifar10_mini": Recipe(
            shipped, scale="small", seconds=300, assets=CIFAR[1:], settings=SHIPPED
        ),
        "training_pictures": Recipe(
            pictures_themselves,
            scale="small",
            seconds=40,
            assets=CIFAR,
            settings={"samples": SHIPPED["samples"]},
        ),
    },
)
TABLES["table1"] = replace(
    TABLES["table1"],
    claims=[
        Claim(
            "token downsampling saves a third of the U-net's operations",
            lambda r: (
                0.30 < 1 - r["dit_unet_token"]["gflops"].value / r["dit_unet"]["gflops"].value < 0.4
            ),
        )
    ],
)
