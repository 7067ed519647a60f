"""The reader reads every module, sees a wrong value, and refuses what it does not know."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from ipt_v2.parity import checks

RECORDING = json.loads((Path(__file__).parent / "golden/ipt_v2.json").read_text())


def fails(run) -> bool:
    return any(error > tolerance for _, error, tolerance in run())


def test_every_module_is_read():
    read = list(checks({"how": RECORDING["how"], "modules": RECORDING["modules"]}))
    assert len(read) == len(RECORDING["modules"])


@pytest.mark.parametrize("index", [0, 2, 8])
def test_a_changed_value_or_order_fails(index):
    for change in ("value", "order", "count"):
        case = copy.deepcopy(RECORDING["modules"][index])
        if change == "value":
            output = case["cases"][0]["output"]
            output["picked"][3] += 1e-3 * output["abs_max"]
        elif change == "order":
            case["state"][0], case["state"][1] = case["state"][1], case["state"][0]
        else:
            case["n_params"] += 1
        ((_, run),) = checks({"how": RECORDING["how"], "modules": [case]})
        assert fails(run)


def test_unknown_sections_classes_and_keys_are_refused():
    module = RECORDING["modules"][0]
    for content in (
        {"samples": []},
        {"modules": [{**module, "official_class": "SwinAttention"}]},
        {"modules": [{**module, "gradients": {}}]},
    ):
        with pytest.raises(ValueError, match="no reader for"):
            for _, run in checks({"how": RECORDING["how"], **content}):
                list(run())
