"""A recipe for every row of the paper's tables that can be computed, and their heat maps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from genimage.figures import draw_tables
from genimage.recipes import (
    column_means,
    complexity,
    format_bias,
    grid_traces,
    reported,
    row_mean,
    small_degraded,
    small_from_one,
    small_means,
    small_row,
    throughput,
)
from genimage.small_photos import GENERATORS
from genimage.small_runs import DETECTORS, settings
from genimage.small_set import ASSETS
from papers_shared.tables.command import run_reproduce
from papers_shared.tables.recipe import Claim, Recipe, Rows, Table

main = partial(run_reproduce, paper="genimage")
draw = draw_tables

# One training and its tests, on one core.
SECONDS_OF_A_RUN = {"mini_resnet": 60, "mini_cnnspot": 60, "mini_spec": 60, "mini_gramnet": 140}

_EXACT = partial(Recipe, scale="exact", seconds=1)
SIZES = {
    "resnet50": ("resnet50", 224),
    "deit_s": ("deit_s", 224),
    "swin_t": ("swin_t", 224),
    "cnnspot": ("cnnspot", 224),
    "spec": ("spec", 224),
    "gramnet_512": ("gramnet", 512),
    "gramnet_224": ("gramnet", 224),
    "f3net": ("f3net", 299),
}
STAND_IN = "tad_sr"  # latent diffusion, for SD V1.4, on which Tables 3 and 5 are trained


def means_table(table: str) -> Table:
    """The printed means of a reported table, from its cells."""
    rows = {
        row: _EXACT(partial(row_mean, table=table, row=row))
        for row in reported().tables[table].rows
    }
    if table == "table2":
        rows["column_means"] = _EXACT(partial(column_means, table=table))
    return Table(rows)


def _small(run: Callable, detector: str, *, trainings: int) -> Recipe:
    return Recipe(
        run,
        scale="small",
        seconds=trainings * SECONDS_OF_A_RUN[detector],
        assets=ASSETS,
        settings=settings(detector),
    )


def _drops(row: str) -> Callable[[Rows], bool]:
    """The own generator is at least 10 points ahead of the others, beyond two deviations."""

    def check(rows: Rows) -> bool:
        own, others = rows[row]["own"], rows[row]["others"]
        return own.value - others.value > max(10, 2 * ((own.std or 0) + (others.std or 0)))

    return check


def matrix_table(detector: str, *, matched: bool) -> Table:
    """Training generator by testing generator, of one detector."""
    run = partial(small_row, detector=detector, matched=matched)
    rows = {
        name: _small(partial(run, generator=name), detector, trainings=3) for name in GENERATORS
    }
    claims = [
        Claim(
            "the generator trained on is found better than the mean of the others, in every row",
            lambda r: all(r[g][g].value > r[g]["others"].value for g in GENERATORS),
        )
    ]
    return Table(rows, claims=claims)


def _gap(a: str, b: str) -> Callable[[Rows], bool]:
    """Every detector but CNNSpot loses at least 5 points from column ``a`` to ``b``."""
    return lambda rows: all(
        rows[d][a].value - rows[d][b].value > 5 for d in DETECTORS if d != "mini_cnnspot"
    )


def degraded_table() -> Table:
    """Table 5 at small scale."""
    plain, hardened = "mini_resnet", "mini_cnnspot"

    def loss(rows: Rows, detector: str) -> float:
        row = rows[detector]
        return row["clean"].value - (row["jpeg65"].value + row["jpeg30"].value) / 2

    return Table(
        {d: _small(partial(small_degraded, detector=d), d, trainings=18) for d in DETECTORS},
        claims=[
            Claim("JPEG 30 hurts every detector but CNNSpot", _gap("clean", "jpeg30")),
            Claim("low resolution (64 of 224) hurts every one of them", _gap("clean", "lr64")),
            Claim(
                "CNNSpot's augmentation makes JPEG harmless: it loses less than half as much",
                lambda rows: loss(rows, hardened) < loss(rows, plain) / 2,
            ),
        ],
    )


TABLES: dict[str, Table] = {
    **{
        f"{name}_means": means_table(name)
        for name in ("table2", "table3", "table4", "table5", "reruns")
    },
    "complexity": Table(
        {
            row: _EXACT(partial(complexity, variant=variant, size=size))
            for row, (variant, size) in SIZES.items()
        }
    ),
    **{
        f"table2_small_{d.removeprefix('mini_')}{'_matched' * m}": matrix_table(d, matched=m)
        for d in DETECTORS
        for m in (False, True)
    },
    "table3_small": Table(
        {
            d: _small(partial(small_from_one, detector=d, generator=STAND_IN), d, trainings=3)
            for d in DETECTORS
        }
    ),
    "table4_small": Table(
        {d: _small(partial(small_means, detector=d), d, trainings=18) for d in DETECTORS},
        claims=[
            Claim(
                f"{d.removeprefix('mini_')}: large drop from the own to other generators", _drops(d)
            )
            for d in DETECTORS
        ],
    ),
    "table5_small": degraded_table(),
    "bias": Table(
        {
            f"jpeg{quality}": Recipe(
                partial(format_bias, quality=quality),
                scale="small",
                seconds=120,
                assets=("cifar10_test",),
                settings={"train": 1000, "test": 250, "epochs": 6, "lr": 2e-3, "seeds": 3},
            )
            for quality in (96, 75)
        },
        claims=[
            Claim(
                "a detector trained on formats is good until both classes have the same one",
                lambda r: all(
                    r[q]["biased"].value > 80 and abs(r[q]["equalised"].value - 50) < 3
                    for q in ("jpeg96", "jpeg75")
                ),
            )
        ],
    ),
    "spectra": Table(
        {
            way: Recipe(
                partial(grid_traces, way=way), scale="small", seconds=5, assets=("cifar10_test",)
            )
            for way in ("real", "nearest", "bilinear", "bicubic")
        },
        claims=[
            Claim(
                "nearest leaves peaks beside the Nyquist frequencies, bilinear does not",
                lambda r: r["nearest"]["horizontal"].value > r["bilinear"]["horizontal"].value + 1,
            )
        ],
    ),
    "throughput": Table(
        {
            name: Recipe(partial(throughput, variant=name), scale="small", seconds=20)
            for name in ("resnet50", "deit_s", "swin_t", "cnnspot", "spec", "f3net", "gramnet")
        }
    ),
}
