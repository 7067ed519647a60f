"""A recipe for every row of the paper's tables that can be computed (see papers_shared.tables)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from dukd.model import VARIANTS
from dukd.recipes import (
    SMALL,
    SR_SETS,
    TEACHER,
    bicubic,
    fakd_gradient,
    shipped,
    sizes,
    small_training,
    start_of_all,
    wrong_labels,
)
from papers_shared.networks.reproduce import published_rows
from papers_shared.tables.claims import ahead
from papers_shared.tables.command import run_reproduce
from papers_shared.tables.recipe import Claim, Recipe, Table

main = partial(run_reproduce, paper="dukd")

PSNR_COLUMNS = tuple(f"{name}_psnr" for name in SR_SETS)

# --- the small-scale experiment -----------------------------------------------------------------

STEPS = 400
# Row -> what differs from ``SMALL``; without "method" a teacher is asked.
ROWS: Mapping[str, Mapping[str, Any]] = {
    "scratch": {"method": "scratch"},
    "logits": {"method": "logits", "teacher": TEACHER},
    "fitnet": {"method": "fitnet", "teacher": TEACHER},
    "dukd": {"method": "dukd", "teacher": TEACHER},
    "zoom_in": {"method": "zoom_in", "teacher": TEACHER},
    "zoom_out": {"method": "zoom_out", "teacher": TEACHER},
    "zoom_in_out": {"method": "zoom_in_out", "teacher": TEACHER},
    "consistency": {"method": "consistency", "teacher": TEACHER},
    "zoom_out_true": {"method": "zoom_out_true"},
}
# The four operations of label consistency, each alone.
OPERATION_ROWS: Mapping[str, Mapping[str, Any]] = {
    f"operation_{letter}": {"method": "dukd", "teacher": TEACHER, "operations": letter}
    for letter in "ihvt"
}
_SECONDS = {"fitnet": 210.0, "dukd": 180.0, "scratch": 90.0, "zoom_out_true": 100.0}


def _trained(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Recipe]:
    return {
        name: Recipe(
            small_training,
            scale="small",
            seconds=_SECONDS.get(name, 140.0),
            assets=(TEACHER, "bsds500_train", *SR_SETS),
            settings={**SMALL, "steps": STEPS, **changes},
        )
        for name, changes in rows.items()
    }


def small_table() -> Table:
    """Every method on one small student, from one start."""
    beginning = Recipe(
        start_of_all, scale="small", seconds=40, assets=(TEACHER, *SR_SETS), settings=dict(SMALL)
    )
    return Table(
        {"start": beginning, **_trained(ROWS)},
        claims=[
            Claim("DUKD is ahead of logits KD on every set", ahead("dukd", "logits", PSNR_COLUMNS)),
            Claim(
                "logits KD is ahead of the ground truth alone",
                ahead("logits", "scratch", PSNR_COLUMNS),
            ),
            Claim(
                "DUKD is ahead of the ground truth alone", ahead("dukd", "scratch", PSNR_COLUMNS)
            ),
            Claim("zoom-in alone is ahead of logits KD", ahead("zoom_in", "logits", PSNR_COLUMNS)),
            Claim(
                "zoom-out alone is ahead of logits KD", ahead("zoom_out", "logits", PSNR_COLUMNS)
            ),
            Claim(
                "label consistency alone is ahead of logits KD",
                ahead("consistency", "logits", PSNR_COLUMNS),
            ),
            Claim(
                "zoom-out with the teacher is ahead of zoom-out with the true label alone",
                ahead("zoom_out", "zoom_out_true", PSNR_COLUMNS),
            ),
            Claim(
                "DUKD's student is nearer to the teacher than that of logits KD",
                ahead("dukd", "logits", ("fidelity",)),
            ),
            Claim(
                "with label consistency scores change less under the 16 transforms",
                ahead("dukd", "zoom_in_out", ("transforms",), smaller=True),
            ),
        ],
    )


# --- all ----------------------------------------------------------------------------------------


def _bicubic(scale: int) -> Table:
    recipe = Recipe(partial(bicubic, scale=scale), scale="exact", seconds=60, assets=SR_SETS)
    return Table({"bicubic": recipe})


PAPER_SIZES = tuple(name for name in VARIANTS if not name.startswith("mini"))

TABLES: dict[str, Table] = {
    "table1": Table(
        {
            name: Recipe(
                partial(sizes, variant=name),
                scale="exact",
                seconds=30 if name.startswith("swinir") else 4,
                requires=("basicsr",) if name.startswith("swinir") else (),
            )
            for name in PAPER_SIZES
        },
        claims=[
            Claim(
                "the students hold at most a third of their teachers' parameters",
                lambda r: all(
                    r[f"{net}_student_x{s}"]["params"].value
                    < 0.34 * r[f"{net}_teacher_x{s}"]["params"].value
                    for net in ("edsr", "rcan", "swinir")
                    for s in (2, 3, 4)
                ),
            )
        ],
    ),
    **{f"table2_x{scale}": _bicubic(scale) for scale in (2, 3, 4)},
    "defects": Table(
        {
            "back_transform": Recipe(
                partial(wrong_labels, probability=0.3), scale="exact", seconds=1
            ),
            "fakd_gradient": Recipe(fakd_gradient, scale="exact", seconds=1),
        }
    ),
    "teachers": Table(
        {
            **published_rows(("rlfn_x2", "rlfn_x4", "bsrn_x2", "bsrn_x4"), ("set5", "set14")),
            **published_rows(("dat_light_x2", "dat_light_x3", "dat_light_x4"), ("set5",)),
            **published_rows(("carn_m_x2", "carn_m_x3", "carn_m_x4"), ("set5",)),
        }
    ),
    "ablation_small": small_table(),
    "ablation_operations": Table(_trained(OPERATION_ROWS)),
    "shipped": Table(
        {
            name: Recipe(partial(shipped, weights=name), scale="small", seconds=90, assets=SR_SETS)
            for name in ("start_x2", "mini_x2")
        },
        claims=[
            Claim(
                "the student that ships is ahead of where it began, on every set",
                ahead("mini_x2", "start_x2", PSNR_COLUMNS),
            )
        ],
    ),
}
