"""The reader: all cases pass, and fail where values differ or are not known."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from cbq.parity import checks

RECORDING = json.loads((Path(__file__).parent / "golden" / "cbq.json").read_text())


def outcome(recording):
    """Case -> the parts that are off, for all cases that a changed recording may touch."""
    found = {}
    for name, run in checks(recording):
        off = [part for part, error, tolerance in run() if not error <= tolerance]
        if off:
            found[name.split("] ")[-1]] = off
    return found


def test_every_case_passes() -> None:
    assert len(list(checks(RECORDING))) == len(RECORDING["cases"]) + len(RECORDING["param_counts"])
    assert outcome(RECORDING) == {}


def test_a_changed_value_fails_where_it_is() -> None:
    recording = copy.deepcopy(RECORDING)
    by_kind = {case["kind"]: case for case in reversed(recording["cases"])}
    by_kind["cfp_activation_scale"]["outputs"]["otsu_neg"]["out_num"] += 1
    by_kind["adaround"]["outputs"]["reg_V1_by_beta"]["10.0"] *= 1.001
    by_kind["uniform_weight"]["outputs"]["zero"]["picked"][2] += 1
    by_kind["uniform_activation"]["outputs"]["dequant"]["picked"][0] += 0.01
    recording["param_counts"]["opt_66b"] += 1
    recording["cases"] = list(by_kind.values())
    found = outcome(recording)
    assert sorted(part for parts in found.values() for part in parts) == [
        "dequant",
        "opt_66b",
        "otsu_neg out_num",
        "reg_V1_by_beta 10.0",
        "zero",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["cases"][0].update(kind="windows"), "kind 'windows'"),
        (lambda r: r["cases"][0]["outputs"].update(extra=1), "the output 'extra'"),
        (lambda r: r.update(more={}), "section 'more'"),
        (lambda r: r["param_counts"].update(gpt2=1), "no host model 'gpt2'"),
    ],
)
def test_what_is_not_known_fails(change, message) -> None:
    recording = copy.deepcopy(RECORDING)
    recording["cases"] = recording["cases"][:1]
    change(recording)
    with pytest.raises(ValueError, match=message):
        outcome(recording)
