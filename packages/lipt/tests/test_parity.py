"""The reader fails where values differ, and on what it does not know."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path

import pytest

from lipt.parity import checks
from papers_shared.parity import case_outcome

RECORDING = json.loads((Path(__file__).parent / "golden" / "lipt.json").read_text())


run = partial(case_outcome, checks)


@pytest.fixture
def recording():
    return copy.deepcopy(RECORDING)


def test_every_section_is_read() -> None:
    names = [name for name, _ in checks(RECORDING)]
    entries = sum(isinstance(v, dict) for v in RECORDING["full_size"].values())
    assert len(names) == entries + len(RECORDING["cases"]) + len(RECORDING["modules"]) + 1


def test_a_changed_value_fails_where_it_is(recording) -> None:
    case = next(c for c in recording["cases"] if c["name"] == "lipt_a")
    case["intermediate"]["body.1.smmsa_0.attn_sparse"]["picked"][3] += 1e-3
    case["merged"]["n_params"] += 1
    case["train_step"]["running_after"][next(iter(case["train_step"]["running_after"]))]["picked"][
        0
    ] += 1e-3
    failed = {part for part, passed in run(recording, "lipt_a").items() if not passed}
    assert len(failed) == 4
    assert {"fast body.1.smmsa_0.attn_sparse", "merged n_params"} <= failed


def test_changed_rows_of_a_mask_fail(recording) -> None:
    mask = next(c for c in recording["modules"] if "ref_pad" in c["module"])
    mask["rows_picked"][3] += 1
    assert run(recording, "ref_pad") == {"rows_picked": False, "columns_picked": True}


def test_unknown_kinds_and_keys_fail(recording) -> None:
    recording["modules"][0]["kind"] = "rep_conv"
    recording["metrics"]["lpips"] = 0.1
    recording["extra"] = "words"
    for name, message in (
        ("DiverseBranchBlock", "no reader for kind 'rep_conv'"),
        ("metrics", "no reader for lpips"),
        ("extra", "no reader for kind 'str'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(recording, name)
