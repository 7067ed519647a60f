"""The table ``mixers``; ``transformer_compression.reproduce`` lists it."""

from __future__ import annotations

from typing import Any

from papers_shared.tables.recipe import Claim, Recipe, Rows, Table
from transformer_compression.efficient.recipes import mixer_row

LENGTHS = (256, 2048, 8192)
SETTINGS: dict[str, Any] = {
    "width": 128,
    "layers": 4,
    "heads": 4,
    "steps": 80,
    "batch": 8,
    "length": 128,
    "windows": 64,
    "seeds": 3,
    "lengths": LENGTHS,
}
NAMES = ("softmax", "local", "linear", "retention", "mamba", "pooling")
ASSETS = ("wikitext2_valid", "wikitext2_test")


def _grows(name: str, what: str, r: Rows) -> float:
    return r[name][f"{what}_8192"].value / r[name][f"{what}_256"].value


TABLES: dict[str, Table] = {
    "mixers": Table(
        {
            name: Recipe(
                mixer_row,
                scale="small",
                seconds=240 if name == "mamba" else 90,
                assets=ASSETS,
                settings={"mixer": name, **SETTINGS},
            )
            for name in NAMES
        },
        claims=[
            Claim(
                "a decoded token's state does not grow with the length, except for exact attention",
                lambda r: (
                    _grows("softmax", "state", r) > 30
                    and all(_grows(n, "state", r) <= 1 for n in ("linear", "retention", "mamba"))
                ),
            ),
            Claim(
                "a pass over 32 times the tokens takes under 60 times as long, except for exact "
                "attention, which takes more",
                lambda r: (
                    _grows("softmax", "forward", r) > 60
                    and all(
                        _grows(n, "forward", r) < 60
                        for n in ("local", "linear", "retention", "mamba")
                    )
                ),
            ),
            Claim(
                "mixers that see far and choose (attention, retention, state space) beat pooling",
                lambda r: all(
                    r[n]["bits_per_byte"].value < r["pooling"]["bits_per_byte"].value
                    for n in ("softmax", "retention", "mamba")
                ),
            ),
        ],
    )
}
