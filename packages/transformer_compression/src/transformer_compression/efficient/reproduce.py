"""The tables ``mixers`` and ``mixer_costs``; ``transformer_compression.reproduce`` lists them."""

from __future__ import annotations

from typing import Any

from papers_shared.tables.recipe import Claim, Recipe, Rows, Table
from transformer_compression.efficient.recipes import cost_row, mixer_row

COMMON: dict[str, Any] = {"width": 128, "heads": 4}
TRAINING: dict[str, Any] = {
    **COMMON,
    "layers": 4,
    "steps": 80,
    "batch": 8,
    "length": 128,
    "windows": 64,
    "seeds": 3,
}
COSTS: dict[str, Any] = {**COMMON, "lengths": (256, 2048, 8192), "repeats": 5}
NAMES = ("softmax", "local", "linear", "retention", "mamba", "pooling")
ASSETS = ("wikitext2_valid", "wikitext2_test")


def _grows(name: str, what: str, r: Rows) -> float:
    return r[name][f"{what}_8192"].value / r[name][f"{what}_256"].value


def _trained(name: str) -> Recipe:
    settings = {"mixer": name, **TRAINING}
    seconds = 180 if name == "mamba" else 50
    return Recipe(mixer_row, scale="small", seconds=seconds, assets=ASSETS, settings=settings)


def _costs(name: str) -> Recipe:
    return Recipe(cost_row, scale="small", seconds=20, settings={"mixer": name, **COSTS})


TABLES: dict[str, Table] = {
    "mixers": Table(
        {name: _trained(name) for name in NAMES},
        claims=[
            Claim(
                "mixers that see far and choose (attention, retention, state space) beat pooling",
                lambda r: all(
                    r[n]["bits_per_byte"].value < r["pooling"]["bits_per_byte"].value
                    for n in ("softmax", "retention", "mamba")
                ),
            ),
        ],
    ),
    "mixer_costs": Table(
        {name: _costs(name) for name in NAMES},
        claims=[
            Claim(
                "a decoded token's state does not grow with the length, except for exact attention",
                lambda r: (
                    _grows("softmax", "state", r) > 30
                    and all(_grows(n, "state", r) <= 1 for n in NAMES if n != "softmax")
                ),
            ),
            Claim(
                "a pass over 32 times the tokens takes under 60 times as long, except for exact "
                "attention, which takes more",
                lambda r: (
                    _grows("softmax", "forward", r) > 60
                    and all(_grows(n, "forward", r) < 60 for n in NAMES if n != "softmax")
                ),
            ),
            Claim(
                "a decoded token takes as long behind 8,192 tokens as behind 256 (within a factor "
                "of two), except for exact attention",
                lambda r: (
                    _grows("softmax", "step", r) > 4
                    and all(_grows(n, "step", r) < 2 for n in NAMES if n != "softmax")
                ),
            ),
        ],
    ),
}
