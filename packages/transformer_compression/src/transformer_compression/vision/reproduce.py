"""The tables ``vision`` and ``tokens``; ``transformer_compression.reproduce`` lists them."""

from __future__ import annotations

from functools import partial
from typing import Any

from papers_shared.tables.recipe import Claim, Context, Measured, Recipe, Rows, Table
from transformer_compression.prune.tokens import evit_macs
from transformer_compression.prune.tome import tome_macs
from transformer_compression.vision.recipes import (
    compressed_row,
    dense_row,
    random_merging_row,
    student_row,
)

CIFAR = ("cifar10_train", "cifar10_test")
COMMON: dict[str, Any] = {"pictures": 1000, "calibration": 128}


def _method(
    *steps: tuple[str, dict[str, Any]], draws: int = 1, seconds: float = 20, **changes: Any
) -> Recipe:
    settings = {**COMMON, "steps": steps, "draws": draws, **changes}
    return Recipe(
        compressed_row, scale="small", seconds=seconds * draws, assets=CIFAR, settings=settings
    )


def _student(
    loss: str, *, teacher: str = "dense", blocks: tuple[int, ...] = (0, 2, 5), **changes: Any
) -> Recipe:
    settings = {
        **COMMON,
        "teacher": teacher,
        "loss": loss,
        "blocks": blocks,
        "steps": 60,
        "batch": 48,
        "lr": 5e-4,
        "alpha": 0.7,
        "draws": 3,
        "before": (),
        "after": (),
        **changes,
    }
    assets = (*CIFAR, "cifar10_resnet20") if teacher == "resnet20" else CIFAR
    return Recipe(student_row, scale="small", seconds=75, assets=assets, settings=settings)


def _random(r: int) -> Recipe:
    settings = {**COMMON, "r": r, "draws": 3}
    return Recipe(random_merging_row, scale="small", seconds=40, assets=CIFAR, settings=settings)


W4, W3 = {"bits": 4}, {"bits": 3}
PRUNED = {"pattern": "0.5"}
BASES = ("magnitude", "wanda", "sparsegpt")

RECIPES: dict[str, Recipe] = {
    "dense": Recipe(dense_row, scale="small", seconds=20, assets=CIFAR, settings=COMMON),
    "magnitude_50": _method(("magnitude", PRUNED)),
    "wanda_50": _method(("wanda", PRUNED)),
    "sparsegpt_50": _method(("sparsegpt", PRUNED)),
    "magnitude_2_4": _method(("magnitude", {"pattern": "2:4"})),
    "wanda_2_4": _method(("wanda", {"pattern": "2:4"}), draws=3),
    "sparsegpt_2_4": _method(("sparsegpt", {"pattern": "2:4"}), draws=3),
    "wanda_4_8": _method(("wanda", {"pattern": "4:8"})),
    "structured_25": _method(("structured_activation", {"ratio": 0.25})),
    "structured_50": _method(("structured_activation", {"ratio": 0.5})),
    "structured_50_plain": _method(("structured_activation", {"ratio": 0.5, "correct": False})),
    "structured_50_tuned": _student(
        "logits", blocks=(), before=(("structured_activation", {"ratio": 0.5}),)
    ),
    "tome_4": _method(("tome", {"r": 4})),
    "tome_8": _method(("tome", {"r": 8})),
    "random_merging_4": _random(4),
    "random_merging_8": _random(8),
    "evit_70": _method(("evit", {"keep": 0.7})),
    "evit_50": _method(("evit", {"keep": 0.5})),
    "rtn_w4": _method(("rtn", W4)),
    "gptq_w4": _method(("gptq", W4)),
    "rtn_w3": _method(("rtn", W3)),
    "gptq_w3": _method(("gptq", W3), draws=3),
    "lsq_w3": _method(("lsq", {"bits": 3, "steps": 60, "lr": 1e-4}), seconds=60, calibration=1024),
    # 32 pictures, as in the papers.
    "ptq4vit_w6a6": _method(("ptq4vit", {"bits": 6}), seconds=120, calibration=32),
    "fqvit_w8a8": _method(("fqvit", {"bits": 8, "attention_bits": 4}), calibration=32),
    "repq_w6a6": _method(("repq", {"bits": 6}), calibration=32),
    "sparsegpt_50_then_gptq_w4": _method(("sparsegpt", PRUNED), ("gptq", W4)),
    "gptq_w4_then_wanda_50": _method(("gptq", W4), ("wanda", PRUNED)),
    "sparsegpt_joint_50_w4": _method(("sparsegpt_joint", {"pattern": "0.5", "bits": 4})),
    "tome_4_gptq_w4": _method(("gptq", W4), ("tome", {"r": 4})),
    "student_ce": _student("ce"),
    "student_logits": _student("logits"),
    "student_manifold": _student("manifold"),
    "student_cnn": _student("hard", teacher="resnet20"),
    "student_logits_then_gptq_w4": _student("logits", after=(("gptq", W4),)),
}


def _higher(better: str, worse: str) -> Claim:
    return Claim(
        f"{better} answers at least as often right as {worse}",
        lambda r: r[better]["top1"].value >= r[worse]["top1"].value,
    )


def _ordered(pattern: str, r: Rows) -> bool:
    values = [r[f"{base}_{pattern}"]["top1"].value for base in BASES]
    return values == sorted(values)


CLAIMS = [
    Claim("at 50 %: magnitude <= Wanda <= SparseGPT", partial(_ordered, "50")),
    Claim("at 2:4: magnitude <= Wanda <= SparseGPT", partial(_ordered, "2_4")),
    Claim(
        "2:4 costs more than 50 % without a pattern, for each criterion",
        lambda r: all(
            r[f"{base}_2_4"]["top1"].value <= r[f"{base}_50"]["top1"].value for base in BASES
        ),
    ),
    _higher("gptq_w3", "rtn_w3"),
    _higher("tome_4", "random_merging_4"),
    _higher("tome_8", "random_merging_8"),
    _higher("structured_50", "structured_50_plain"),
    _higher("structured_50_tuned", "structured_50"),
    _higher("student_logits", "student_ce"),
    _higher("student_manifold", "student_ce"),
    _higher("sparsegpt_50_then_gptq_w4", "gptq_w4_then_wanda_50"),
    Claim(
        "zeros, 2:4 and codes save no time on this device: within 15 % of the dense model",
        lambda r: all(
            abs(r[name]["speedup"].value - 1) < 0.15
            for name in ("wanda_50", "sparsegpt_2_4", "gptq_w4")
        ),
    ),
    Claim(
        "fewer heads, channels and tokens save time",
        lambda r: all(
            r[name]["speedup"].value > 1.1 for name in ("structured_50", "tome_8", "evit_50")
        ),
    ),
]


# --- tokens: multiply-accumulates at the papers' sizes -------------------------------------------

WIDTHS = {"deit_ti": 192, "deit_s": 384, "deit_b": 768}
IMAGENET: dict[str, Any] = {"depth": 12, "tokens": 197, "patch_inputs": 768, "classes": 1000}


def merging_macs(context: Context, *, r: int) -> dict[str, Measured]:
    """G multiply-accumulates of the DeiTs with r tokens merged in each block."""
    return {
        name: Measured(tome_macs(width=width, r=r, **IMAGENET) / 1e9)
        for name, width in WIDTHS.items()
    }


def dropping_macs(context: Context, *, keep: float, names: tuple[str, ...]) -> dict[str, Measured]:
    """G multiply-accumulates of DeiTs with EViT."""
    return {
        name: Measured(evit_macs(width=WIDTHS[name], keep=keep, **IMAGENET) / 1e9) for name in names
    }


_EXACT = partial(Recipe, scale="exact", seconds=1)
TABLES: dict[str, Table] = {
    "vision": Table(RECIPES, claims=CLAIMS),
    "tokens": Table(
        {
            **{f"tome_{r}": _EXACT(partial(merging_macs, r=r)) for r in (0, 8, 13, 16)},
            **{
                f"evit_{round(100 * keep)}": _EXACT(
                    partial(
                        dropping_macs,
                        keep=keep,
                        names=("deit_s", "deit_b") if keep == 0.7 else ("deit_s",),
                    )
                )
                for keep in (0.9, 0.8, 0.7, 0.6, 0.5)
            },
        }
    ),
}
