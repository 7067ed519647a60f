"""A recipe for every row of the paper's tables that can be computed (see papers_shared.tables)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from lipt.model import VARIANTS, Config
from lipt.recipes import (
    SMALL,
    TOY,
    TOY_DEEPER,
    complexity,
    merging,
    merging_speed,
    parameters,
    shipped,
    small_training,
    untouched,
)
from papers_shared.networks.reproduce import published_rows
from papers_shared.restoration.task import Task
from papers_shared.tables.claims import ahead
from papers_shared.tables.command import run_reproduce
from papers_shared.tables.recipe import Claim, Recipe, Rows, Table

main = partial(run_reproduce, paper="lipt")

SR_SETS = ("set5", "set14", "bsd100")
CLEAN_SETS = ("kodak24", "cbsd68")
_EXACT = partial(Recipe, scale="exact", seconds=3)


def _names(sets: tuple[str, ...], *metrics: str) -> tuple[str, ...]:
    return tuple(f"{name}_{metric}" for name in sets for metric in metrics)


# --- super-resolution ---------------------------------------------------------------------------

SR_COLUMNS = ("params", *_names(SR_SETS, "psnr", "ssim"))


def super_resolution_table(scale: int) -> Table:
    """Table 1 at one scale: parameters of the paper's networks, bicubic, and what ships here."""
    bicubic = partial(untouched, task=Task("sr", scale), columns=SR_COLUMNS)
    recipes = {
        "bicubic": Recipe(bicubic, scale="exact", seconds=60, assets=SR_SETS),
        **{
            f"lipt_{size}": _EXACT(partial(parameters, variant=f"{size}_x{scale}"))
            for size in ("tiny", "small")
        },
    }
    if scale != 4:
        return Table(recipes)
    mini = partial(shipped, kind="sr", columns=SR_COLUMNS)
    recipes["mini"] = Recipe(mini, scale="small", seconds=150, assets=SR_SETS)
    return Table(
        recipes,
        claims=[
            Claim(
                "the small network that ships is ahead of bicubic on every set (PSNR)",
                ahead("mini", "bicubic", _names(SR_SETS, "psnr")),
            )
        ],
    )


# --- noise and JPEG -----------------------------------------------------------------------------


def denoising_table() -> Table:
    """The noisy pictures themselves, and the network that ships."""
    columns = _names(CLEAN_SETS, "psnr", "ssim")
    noisy = {
        f"noisy_{sigma}": Recipe(
            partial(
                untouched, task=Task("denoise", level=sigma), columns=_names(CLEAN_SETS, "psnr")
            ),
            scale="exact",
            seconds=60,
            assets=CLEAN_SETS,
        )
        for sigma in (15, 25, 50)
    }
    mini = partial(shipped, kind="denoise", columns=columns)
    small = Recipe(mini, scale="small", seconds=400, assets=CLEAN_SETS)
    claim = "the small network that ships takes noise of sigma 25 out: at least 5 dB on either set"
    return Table(
        {**noisy, "mini_25": small},
        claims=[
            Claim(
                claim,
                lambda r: all(
                    r["mini_25"][c].value > r["noisy_25"][c].value + 5
                    for c in _names(CLEAN_SETS, "psnr")
                ),
            )
        ],
    )


def jpeg_table() -> Table:
    """The JPEGs themselves on Y, and the network that ships."""
    columns = _names(CLEAN_SETS, "psnr", "ssim", "psnrb")
    jpegs = {
        f"jpeg_{quality}": Recipe(
            partial(untouched, task=Task("dejpeg", channels=1, level=quality), columns=columns),
            scale="exact",
            seconds=40,
            assets=CLEAN_SETS,
        )
        for quality in (10, 20, 30, 40)
    }
    mini = partial(shipped, kind="dejpeg", columns=columns)
    small = Recipe(mini, scale="small", seconds=120, assets=("kodak24",))
    better = ahead("mini_10", "jpeg_10", ("kodak24_psnr", "kodak24_psnrb"))
    return Table(
        {**jpegs, "mini_10": small},
        claims=[
            Claim("the small network that ships is ahead of the JPEG itself, PSNR-B too", better)
        ],
    )


# --- trainings ----------------------------------------------------------------------------------

ATTENTION: Mapping[str, Config] = {
    "sparse": TOY_DEEPER,
    "dense": replace(TOY_DEEPER, mask="dense"),
    "unshared": replace(TOY_DEEPER, n_share=0),
    "restored": replace(TOY_DEEPER, restore_positions=True),
}
BRANCHES: Mapping[str, Config] = {
    "hrm": TOY,
    "dbb": replace(TOY, branches="dbb"),
    "plain": replace(TOY, branches="plain"),
}


TRAINED_COLUMNS = ("set5_psnr", "set14_psnr")


def _trained(networks: Mapping[str, Config], *, steps: int, seconds: float) -> dict[str, Recipe]:
    settings: Mapping[str, Any] = {**SMALL, "steps": steps}
    return {
        name: Recipe(
            small_training,
            scale="small",
            seconds=seconds,
            assets=("bsds500_train", "set5", "set14"),
            settings={**settings, "network": network.to_dict()},
        )
        for name, network in networks.items()
    }


def _near(one: str, other: str, gap: float) -> Callable[[Rows], bool]:
    return lambda r: all(abs(r[one][c].value - r[other][c].value) < gap for c in TRAINED_COLUMNS)


# --- all ----------------------------------------------------------------------------------------

COUNTED = tuple(
    [f"{size}_x{scale}" for size in ("tiny", "small", "base") for scale in (2, 3, 4)]
    + ["tiny_released_x2"]
)
MERGED = ("tiny_released_x2", "tiny_x4", "small_x4")

TABLES: dict[str, Table] = {
    **{f"table1_x{scale}": super_resolution_table(scale) for scale in (2, 3, 4)},
    "complexity": Table(
        {name: _EXACT(partial(complexity, variant=name)) for name in COUNTED if name in VARIANTS},
        claims=[
            Claim(
                "attention is a small part: under 8 % of the multiply-accumulates everywhere",
                lambda r: all(
                    r[name]["macs_attention"].value < 0.08 * r[name]["macs_conv"].value
                    for name in COUNTED
                ),
            )
        ],
    ),
    "merge": Table({name: _EXACT(partial(merging, variant=name)) for name in MERGED}),
    "merge_speed": Table(
        {
            name: Recipe(partial(merging_speed, variant=name), scale="small", seconds=30)
            for name in MERGED
        },
        claims=[
            Claim(
                "merging makes the network at least twice as fast",
                lambda r: all(r[name]["speedup"].value > 2 for name in MERGED),
            )
        ],
    ),
    "denoising": denoising_table(),
    "jpeg": jpeg_table(),
    "published": Table(
        {
            **published_rows(("rlfn_x2", "rlfn_x4", "bsrn_x4"), ("set5", "set14")),
            **published_rows(("dat_light_x2", "dat_light_x3", "dat_light_x4"), ("set5",)),
        }
    ),
    "ablation_attention": Table(
        _trained(ATTENTION, steps=300, seconds=150),
        claims=[
            Claim(
                "sparse windows beside dense ones are better than dense ones alone",
                ahead("sparse", "dense", TRAINED_COLUMNS),
            ),
            Claim(
                "sharing attention maps costs less than 0.1 dB", _near("sparse", "unshared", 0.1)
            ),
            Claim(
                "undoing the mask's permutation helps", ahead("restored", "sparse", TRAINED_COLUMNS)
            ),
        ],
    ),
    "ablation_branches": Table(
        _trained(BRANCHES, steps=150, seconds=200),
        claims=[
            Claim(
                "HRM is better than one plain convolution", ahead("hrm", "plain", TRAINED_COLUMNS)
            ),
            Claim(
                "HRM is better than the diverse branch block", ahead("hrm", "dbb", TRAINED_COLUMNS)
            ),
        ],
    ),
}
