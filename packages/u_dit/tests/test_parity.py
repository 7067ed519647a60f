"""The reader reads every section, sees a wrong value, and refuses what it does not know."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from u_dit.parity import checks

RECORDING = json.loads((Path(__file__).parent / "golden/u_dit.json").read_text())
COUNTS = {
    "cases": 5,
    "modules": 6,
    "diffusion": 18,
    "train_step": 1,
    "evaluator": 1,
    "images": 4,
}


def section(name: str, content: object = None) -> dict:
    return {
        "tolerance": RECORDING["tolerance"],
        name: RECORDING[name] if content is None else content,
    }


def fails(run) -> bool:
    return any(not error <= tolerance for _, error, tolerance in run())


@pytest.mark.parametrize("name", COUNTS)
def test_every_case_of_a_section_is_read(name: str) -> None:
    assert len(list(checks(section(name)))) == COUNTS[name]


@pytest.mark.parametrize("change", ["value", "order", "count"])
def test_a_changed_value_order_or_count_fails(change: str) -> None:
    case = copy.deepcopy(RECORDING["cases"][2])
    if change == "value":
        case["output_eval"]["picked"][3] += 1e-3 * case["output_eval"]["abs_max"]
    elif change == "order":
        case["state"][0], case["state"][1] = case["state"][1], case["state"][0]
    else:
        case["n_trainable"] += 1
    ((_, run),) = checks(section("cases", [case]))
    assert fails(run)


def test_unknown_sections_classes_and_keys_are_refused() -> None:
    case, module = RECORDING["cases"][2], RECORDING["modules"][2]
    for content in (
        section("samples", []),
        section("cases", [{**case, "class": "UViT"}]),
        section("cases", [{**case, "gradients": {}}]),
        section("modules", [{**module, "module": "SwinAttention"}]),
        section("modules", [{**module, "gradients": {}}]),
        section("diffusion", {"condition_mean": {}}),
    ):
        with pytest.raises(ValueError, match="no reader for"):
            for _, run in checks(content):
                list(run())
