"""Recipes for rows of published networks: their released weights, measured as papers measure.

Where these rows come out as printed, a paper's own row, measured by the same functions, compares.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from papers_shared.networks import describe, load
from papers_shared.restoration import benchmarks
from papers_shared.restoration.benchmarks import SuperResolutionSet
from papers_shared.restoration.protocols import super_resolution
from papers_shared.tables.recipe import Claim, Context, Measured, Recipe, Rows, Table

# HR megapixels of the sets of the catalogue, for the recipes' seconds.
MEGAPIXELS = {"set5": 0.57, "set14": 3.23, "bsd100": 15.4}


def measure_published(context: Context, *, network: str, benchmark: str) -> dict[str, Measured]:
    """Mean PSNR-Y and SSIM-Y of a published network on a test set, columns psnr and ssim."""
    entry = describe(network)
    model = load(network, path=context.assets[entry.asset].path).to(context.device)
    scores = super_resolution(
        model,
        SuperResolutionSet(benchmark, entry.scale),
        scale=entry.scale,
        device=context.device,
        progress=context.progress,
    )
    return {c: Measured(value, n=len(scores.images)) for c, value in scores.means.items()}


def published_rows(networks: Iterable[str], sets: Iterable[str]) -> dict[str, Recipe]:
    """Recipes of rows ``{network}_{set}`` with columns psnr and ssim.

    Args:
        networks: names of ``papers_shared.networks.NETWORKS`` that have weights.
        sets: set5, set14 or bsd100.

    Raises:
        ValueError: an unknown network, one without weights, or another set.
    """
    sets = list(sets)
    recipes = {}
    for network in networks:
        entry = describe(network)
        if not entry.asset:
            raise ValueError(f"{network} has no weights in the catalogue, so no row to reproduce")
        for name in sets:
            if name not in MEGAPIXELS:
                known = ", ".join(MEGAPIXELS)
                raise ValueError(f"{name!r} is not in the catalogue; sets with recipes: {known}")
            input_megapixels = MEGAPIXELS[name] / entry.scale**2
            recipes[f"{network}_{name}"] = Recipe(
                partial(measure_published, network=network, benchmark=name),
                seconds=5 + input_megapixels * entry.seconds_per_megapixel,
                scale="exact",
                assets=(entry.asset, benchmarks.describe(name).asset),
                requires=entry.requires,
            )
    return recipes


def _ordered(rows: Rows) -> bool:
    values = [rows[f"{n}_x4_set5"]["psnr"].value for n in ("dat_light", "bsrn", "rlfn")]
    return values == sorted(values, reverse=True)


TABLES = {
    "networks": Table(
        recipes={
            **published_rows(
                ("rlfn_x2", "rlfn_x4", "bsrn_x2", "bsrn_x3", "bsrn_x4"), ("set5", "set14")
            ),
            **published_rows(("rlfn_x2", "rlfn_x4", "bsrn_x4"), ("bsd100",)),
            **published_rows(
                ("dat_light_x2", "dat_light_x3", "dat_light_x4"), ("set5", "set14", "bsd100")
            ),
            **published_rows(("rfdn_aim_x4", "imdn_baseline_x4"), ("set5", "set14")),
            **published_rows(("efdn_x4", "carn_m_x2", "carn_m_x3", "carn_m_x4"), ("set5",)),
        },
        claims=[Claim("On Set5 x4 DAT-light is ahead of BSRN, and BSRN of RLFN", _ordered)],
    )
}
