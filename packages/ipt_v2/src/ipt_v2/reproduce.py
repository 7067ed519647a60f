"""A recipe for every row of the tables that can be computed (see papers_shared.tables)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from ipt_v2.generation import GENERATION_VARIANTS
from ipt_v2.model import VARIANTS, Config, Regime
from ipt_v2.recipes import (
    REGIME_SETTINGS,
    SMALL,
    TEST_SETS,
    TOY,
    complexity,
    cost,
    generation_counts,
    merging,
    noisy,
    receptive_field,
    regimes,
    shipped,
    small_training,
)
from papers_shared.tables.claims import ahead
from papers_shared.tables.command import run_reproduce
from papers_shared.tables.recipe import Claim, Recipe, Rows, Table

main = partial(run_reproduce, paper="ipt_v2")

_EXACT = partial(Recipe, scale="exact", seconds=5)
PSNR_COLUMNS = tuple(f"{name}_psnr" for name in TEST_SETS)

SIZES: Mapping[str, Config] = {
    **{name: VARIANTS[name] for name in ("b", "s", "t", "toy", "mini", "cpu_toy")},
    "b_cells_8": replace(VARIANTS["b"], cell_sizes=(8, 4, 2, 1)),
    "b_cells_32": replace(VARIANTS["b"], cell_sizes=(32, 16, 8, 4)),
    "b_window_16": replace(VARIANTS["b"], window_size=16),
    "toy_ff": replace(VARIANTS["toy"], attention=("fcsa", "fcsa")),
    "toy_gg": replace(VARIANTS["toy"], attention=("ggsa", "ggsa")),
}
MERGED = ("cpu_toy", "mini", "t")
# Regime, in tiles or whole, seconds.
WAYS: Mapping[str, tuple[Regime, bool, float]] = {
    "cells": ("cells", False, 100),
    "grid": ("grid", False, 150),
    "tiles": ("cells", True, 150),
}

# Each differs from FG in one thing.
ABLATION: Mapping[str, Config] = {
    "fg": TOY,
    "ff": replace(TOY, attention=("fcsa", "fcsa")),
    "gg": replace(TOY, attention=("ggsa", "ggsa")),
    "channel": replace(TOY, attention=("mdta", "mdta")),
    "unshifted": replace(TOY, attention=("fcsa_unshifted", "ggsa")),
    "plain": replace(TOY, rep=0, plain_identity=True),
}


def _growth(rows: Rows, kind: str) -> float:
    """How a fourfold number of pixels multiplies the cost, from 128 to 256."""
    return rows[kind]["counted_256"].value / rows[kind]["counted_128"].value


TABLES: dict[str, Table] = {
    "complexity": Table(
        {name: _EXACT(partial(complexity, config=config)) for name, config in SIZES.items()},
        claims=[
            Claim(
                "merging saves a tenth or more of parameters and multiply-accumulates",
                lambda r: all(
                    r[name][column].value < 0.9 * r[name][f"{column}_train"].value
                    for name in ("b", "s", "t")
                    for column in ("params", "macs")
                ),
            )
        ],
    ),
    "generation_complexity": Table(
        {
            name: _EXACT(partial(generation_counts, variant=name), seconds=10)
            for name in GENERATION_VARIANTS
            if name != "g16"  # for tests and small trainings
        }
    ),
    "receptive_field": Table(
        {kind: _EXACT(partial(receptive_field, kind=kind)) for kind in ("fcsa", "ggsa")},
        claims=[
            Claim(
                "focal attention sees a neighbourhood whole, grid attention one pixel of each cell",
                lambda r: (
                    r["fcsa"]["stride"].value == 1
                    and r["fcsa"]["last_row"].value - r["fcsa"]["first_row"].value < 16
                    and r["ggsa"]["stride"].value == 8
                    and r["ggsa"]["pixels"].value == 64
                ),
            )
        ],
    ),
    "cost": Table(
        {kind: _EXACT(partial(cost, kind=kind)) for kind in ("fcsa", "ggsa")},
        claims=[
            Claim(
                "counted operations equal the formula",
                lambda r: all(
                    r[kind][f"counted_{side}"].value == r[kind][f"formula_{side}"].value
                    for kind in ("fcsa", "ggsa")
                    for side in (64, 128, 256)
                ),
            ),
            Claim(
                "focal attention is linear in the pixels, grid attention of fixed cells is not",
                lambda r: _growth(r, "fcsa") < 4.1 and _growth(r, "ggsa") > 8,
            ),
        ],
    ),
    "merge": Table(
        {name: _EXACT(partial(merging, variant=name)) for name in MERGED},
        claims=[
            Claim(
                "merging changes results by less than 1e-5 of the largest value",
                lambda r: all(r[name]["difference"].value < 1e-5 for name in MERGED),
            )
        ],
    ),
    "denoising_colour": Table(
        {
            **{
                f"noisy_{sigma}": Recipe(
                    partial(noisy, sigma=sigma), scale="exact", seconds=60, assets=TEST_SETS
                )
                for sigma in (15, 25, 50)
            },
            "mini_25": Recipe(shipped, scale="small", seconds=500, assets=TEST_SETS),
        },
        claims=[
            Claim(
                "the small network that ships takes 5 dB of noise or more out of either set",
                lambda r: all(
                    r["mini_25"][c].value > r["noisy_25"][c].value + 5 for c in PSNR_COLUMNS
                ),
            )
        ],
    ),
    "regimes": Table(
        {
            name: Recipe(
                partial(regimes, regime=regime, tiled=tiled),
                scale="small",
                seconds=seconds,
                assets=("kodak24",),
                settings=REGIME_SETTINGS,
            )
            for name, (regime, tiled, seconds) in WAYS.items()
        },
        claims=[
            Claim(
                "on photos of 4 times the pixels a grid and tiles are within 0.1 dB of cells",
                lambda r: all(
                    abs(r[name]["enlarged_psnr"].value - r["cells"]["enlarged_psnr"].value) < 0.1
                    for name in ("grid", "tiles")
                ),
            )
        ],
    ),
    "ablation_small": Table(
        {
            name: Recipe(
                small_training,
                scale="small",
                seconds=150,
                assets=("bsds500_train", *TEST_SETS),
                settings={**SMALL, "network": config.to_dict()},
            )
            for name, config in ABLATION.items()
        },
        claims=[
            Claim(
                "focal and grid attention are better than focal alone",
                ahead("fg", "ff", PSNR_COLUMNS),
            ),
            Claim(
                "focal and grid attention are better than grid alone",
                ahead("fg", "gg", PSNR_COLUMNS),
            ),
            Claim(
                "focal attention in windows is better than channel attention of the whole picture",
                ahead("ff", "channel", PSNR_COLUMNS),
            ),
            Claim("the shifted branch raises PSNR", ahead("fg", "unshifted", PSNR_COLUMNS)),
            Claim(
                "without the shifted branch errors step across the borders of windows",
                ahead("fg", "unshifted", ("seam",), smaller=True),
            ),
            Claim(
                "Rep-LeFFN is better than the plain net it merges into",
                ahead("fg", "plain", PSNR_COLUMNS),
            ),
        ],
    ),
}
