"""The reader reads all that was recorded, fails on other values and unknown keys."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path

import pytest

from dukd.parity import checks
from papers_shared.parity import case_outcome

RECORDING = json.loads((Path(__file__).parent / "golden" / "dukd.json").read_text())


run = partial(case_outcome, checks)


@pytest.fixture
def recording():
    return copy.deepcopy(RECORDING)


def test_every_section_is_read() -> None:
    names = [name for name, _ in checks(RECORDING)]
    lists = sum(len(v) for v in RECORDING.values() if isinstance(v, list))
    assert len(names) == lists + len(RECORDING["counts"]) + 2


def test_changed_values_fail_where_they_are(recording) -> None:
    step = recording["dukd_steps"][0]
    step["losses"]["l_zoom_in"] += 1e-3
    step["crop_cells"] = [[1, 1], [0, 1]]
    step["grad_before_step2"]["picked"][3] += 1e-2
    failed = {part for part, passed in run(recording, "step_edsr_x2").items() if not passed}
    assert failed == {"l_zoom_in", "cells", "gradient 2"}


def test_a_changed_run_fails(recording) -> None:
    recording["dukd_runs"][0]["adam_steps"] = 3
    recording["dukd_runs"][0]["ema_minus_params"]["picked"][0] *= 1.1
    failed = {part for part, passed in run(recording, "run_edsr_x3").items() if not passed}
    assert failed == {"steps of Adam", "averaged minus plain"}


def test_unknown_sections_and_keys_fail(recording) -> None:
    recording["noising"]["thrice"] = {}
    recording["extra"] = [{"name": "x"}]
    recording["dukd_steps"][1]["inputs"]["lq"] = "torch.rand(1)"
    for name, message in (
        ("noising", "no reader for thrice"),
        ("extra", "no reader for the section 'extra'"),
        ("step_rcan_x4", "no reader for the input"),
    ):
        with pytest.raises(ValueError, match=message):
            run(recording, name)
