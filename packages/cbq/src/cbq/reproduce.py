"""A recipe for every row of the paper's tables that can be computed (see papers_shared.tables)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from cbq.recipes import SCRATCH, SMALL, counts, small_run
from cbq.settings import parse_bits
from cbq.sizes import HOSTS
from papers_shared.tables.claims import ahead
from papers_shared.tables.command import run_reproduce
from papers_shared.tables.recipe import Claim, Recipe, Table

main = partial(run_reproduce, paper="cbq")

ASSETS = ("wikitext2_valid", "wikitext2_test")
REQUIRES = ("transformers", "gguf", "accelerate")


def _small(
    seconds: float,
    method: str | None = None,
    bits: str = "",
    *,
    table: Mapping[str, Any] = SMALL,
    **changes: Any,
) -> Recipe:
    """A row: the settings of its table, and what of the method's preset is changed."""
    settings: dict[str, Any] = dict(table)
    if method is not None:
        settings |= {"method": method, "changes": {**parse_bits(bits), **changes}}
    return Recipe(
        small_run,
        scale="small",
        seconds=seconds,
        assets=ASSETS,
        settings=settings,
        requires=REQUIRES,
    )


# --- the whole of SmolLM2-135M --------------------------------------------------------------------

STEPS = 24
THREE_SEEDS: Mapping[str, Any] = {**SMALL, "seeds": 3}


def full_table() -> Table:
    """RTN, GPTQ and CBQ from the same start scales and the same calibration tokens.

    CBQ, and GPTQ after the rotation, three seeds; the others one.
    """
    recipes = {"float": _small(60)}
    for bits in ("w2a16", "w4a4", "w4a16"):
        recipes[f"rtn_{bits}"] = _small(240, "rtn", bits)
        recipes[f"gptq_{bits}"] = _small(150, "gptq", bits)
    # Overlap doubles what a block is trained: without it, twice the steps.
    three = partial(_small, table=THREE_SEEDS)
    recipes["cbq_w2a16"] = three(1300, "best", "w2a16", steps=2 * STEPS)
    recipes["cbq_window2_w2a16"] = _small(500, "best", "w2a16", window=2, overlap=1, steps=STEPS)
    for bits in ("w4a4", "w4a16"):
        recipes[f"cbq_{bits}"] = three(1300, "best", bits, steps=STEPS)
    recipes["gptq_rotated_w4a4"] = three(700, "gptq", "w4a4", rotate=True)
    recipes["cbq_rotated_w4a4"] = three(1300, "best", "w4a4", rotate=True, steps=STEPS)
    claims = [
        _below(f"at {bits.upper()} CBQ is below {name}", f"cbq_{bits}", f"{peer}_{bits}")
        for bits in ("w2a16", "w4a4", "w4a16")
        for peer, name in (("gptq", "GPTQ"), ("rtn", "RTN"))
    ]
    claims += [
        _below(
            "after rotation, at W4A4, CBQ is below GPTQ", "cbq_rotated_w4a4", "gptq_rotated_w4a4"
        ),
        _below("at W2A16 two blocks a window beat one", "cbq_window2_w2a16", "cbq_w2a16"),
    ]
    return Table(recipes, claims=claims)


def _below(text: str, low: str, high: str) -> Claim:
    return Claim(text, ahead(low, high, ["ppl"], smaller=True))


# --- ablations on its first six blocks ------------------------------------------------------------

ABLATION: Mapping[str, Any] = {**SMALL, "blocks": 6, "segments": 8, "windows": 8, "seeds": 3}
ABLATION_STEPS = 16
LORA_RATE = 2e-2  # times the few steps about one third


def _ablation(bits: str, method: str = "lora", *, seconds: float = 150, **changes: Any) -> Recipe:
    steps: dict[str, Any] = {}
    if method in ("lora", "best"):
        steps["steps"] = ABLATION_STEPS
    if method == "lora":
        steps["lr_rounding"] = LORA_RATE
    return _small(seconds, method, bits, table=ABLATION, **(steps | changes))


def ablation_table() -> Table:
    """What each part is worth, three seeds each."""
    alone: dict[str, Any] = {"window": 1, "overlap": 0, "steps": 2 * ABLATION_STEPS}
    recipes = {
        "float": _small(10, table={**ABLATION, "seeds": 1}),
        "w2_rtn": _ablation("w2a16", "rtn", seconds=60),
        "w2_gptq": _ablation("w2a16", "gptq", seconds=60),
        "w2_lora": _ablation("w2a16"),
        "w2_window1": _ablation("w2a16", **alone),
        "w2_window2_overlap0": _ablation("w2a16", overlap=0, steps=2 * ABLATION_STEPS),
        "w2_window3_overlap2": _ablation("w2a16", window=3, overlap=2, seconds=220),
        "w2_start_adaround": _ablation("w2a16", start="adaround"),
        "w2_late": _ablation("w2a16", rounding="late", commitment=0.01),
        "w2_l2_mean": _ablation("w2a16", l2="mean"),
        "w2_l2_kl": _ablation("w2a16", kl=1.0),
        "w2_clean_only": _ablation("w2a16", same_term=False),
        "w2_steps_only": _ablation("w2a16", learn_rounding=False),
        "w2_rounding_only": _ablation("w2a16", learn_steps=False),
        "w2_best": _ablation("w2a16", "best", steps=2 * ABLATION_STEPS),
        "w2_best_no_judge": _ablation("w2a16", "best", steps=2 * ABLATION_STEPS, held_out=0.0),
        "w2_best_window2": _ablation("w2a16", "best", window=2, overlap=1),
        "w3_rtn": _ablation("w3a16", "rtn", seconds=60),
        "w3_gptq": _ablation("w3a16", "gptq", seconds=60),
        "w3_lora": _ablation("w3a16"),
        "w3_full_adaround": _ablation("w3a16", rank=0),
        "w3_best": _ablation("w3a16", "best", steps=2 * ABLATION_STEPS),
        "w3_best_window2": _ablation("w3a16", "best", window=2, overlap=1),
        "w4a8_rtn": _ablation("w4a8", "rtn", seconds=60),
        "w4a8_gptq": _ablation("w4a8", "gptq", seconds=60),
        "w4a8_best": _ablation("w4a8", "best"),
        "w4a4_gptq": _ablation("w4a4", "gptq", seconds=60),
        "w4a4_lora": _ablation("w4a4"),
        "w4a4_cfp_activations": _ablation("w4a4", scale_channels=True),
        "w4a4_cfp_weights": _ablation("w4a4", truncate=True),
        "w4a4_best": _ablation("w4a4", "best"),
        "w4a4_best_cfp_activations": _ablation("w4a4", "best", scale_channels=True),
        "w4a4_best_window1": _ablation("w4a4", "best", **alone),
    }
    claims = [
        _below(f"{name}: CBQ is below GPTQ", f"{bits}_best", f"{bits}_gptq")
        for bits, name in (("w2", "W2"), ("w3", "W3"), ("w4a8", "W4A8"), ("w4a4", "W4A4"))
    ]
    claims += [
        _below("W2: two blocks a window beat one", "w2_best_window2", "w2_best"),
        _below("W3: two blocks a window beat one", "w3_best_window2", "w3_best"),
        _below("W4A4: two blocks a window beat one", "w4a4_best", "w4a4_best_window1"),
    ]
    claims += [
        _below("LoRA, W2: overlap helps", "w2_lora", "w2_window2_overlap0"),
        _below("LoRA, W2: two blocks a window beat one", "w2_lora", "w2_window1"),
        _below("LoRA, W2: the error a token beats the mean over all", "w2_lora", "w2_l2_mean"),
        _below("LoRA, W2: hard rounding beats late rounding", "w2_lora", "w2_late"),
        _below("LoRA, W2: rounding and steps beat steps alone", "w2_lora", "w2_steps_only"),
        _below("LoRA, W3: the low rank is below the full matrix", "w3_lora", "w3_full_adaround"),
        _below("LoRA, W4A4: CFP's activation scales help", "w4a4_cfp_activations", "w4a4_lora"),
        _below("W4A4: CFP's activation scales help", "w4a4_best_cfp_activations", "w4a4_best"),
    ]
    return Table(recipes, claims=claims)


# --- a Llama that was trained in float ------------------------------------------------------------

SCRATCH_STEPS = 64


def scratch_table() -> Table:
    """RTN, GPTQ and CBQ on a small Llama trained here, three seeds."""

    def row(bits: str, method: str | None = None) -> Recipe:
        options = {"steps": SCRATCH_STEPS} if method == "best" else {}
        return _small(150, method, bits, table=SCRATCH, **options)

    recipes = {"float": row("")}
    for bits in ("w2a16", "w3a16", "w4a4"):
        for name, method in (("rtn", "rtn"), ("gptq", "gptq"), ("cbq", "best")):
            recipes[f"{name}_{bits}"] = row(bits, method)
    claims = [
        _below(f"at {bits.upper()} CBQ is below GPTQ", f"cbq_{bits}", f"gptq_{bits}")
        for bits in ("w2a16", "w3a16", "w4a4")
    ]
    return Table(recipes, claims=claims)


# --- counts ---------------------------------------------------------------------------------------


def counts_table() -> Table:
    """Sizes from the configurations alone."""
    recipes = {
        name: Recipe(partial(counts, name=name), scale="exact", seconds=0.1) for name in HOSTS
    }
    return Table(
        recipes,
        claims=[
            Claim(
                "LoRA-Rounding learns less than 2 % of what AdaRound does, on every model",
                lambda rows: all(
                    rows[name]["lora"].value < 0.02 * rows[name]["adaround"].value for name in HOSTS
                ),
            )
        ],
    )


TABLES: dict[str, Table] = {
    "small_full": full_table(),
    "small_ablation": ablation_table(),
    "small_scratch": scratch_table(),
    "counts": counts_table(),
}
