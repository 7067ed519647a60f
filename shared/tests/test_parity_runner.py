"""The runner tells right from wrong values, and never lets a case pass unread."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from papers_shared import parity
from papers_shared.assets import AssetMissing


def lines_of(monkeypatch, tmp_path: Path, cases) -> list[parity.Line]:
    class Point:
        name = "fake"

        def load(self):
            return lambda recording: iter(cases)

    monkeypatch.setattr(parity, "entry_points", lambda group: [Point()])
    file = tmp_path / "fake_other.json"
    file.write_text(json.dumps({}))
    return list(parity.run_recordings([file]))


def raises(error: Exception):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "status"),
    [
        (lambda: [("a", 1e-7, 1e-5)], "PASS"),
        (lambda: [("a", 0.0, 0.0)], "PASS"),
        (lambda: [("a", 1e-7, 1e-5), ("b", 2.0, 1.0)], "FAIL"),
        (lambda: [("a", 1.0, 0.0)], "FAIL"),
        (lambda: [("a", math.nan, 1.0)], "FAIL"),
        (list, "FAIL"),
        (raises(KeyError("no reader")), "FAIL"),
        (raises(parity.CannotRun("needs a library")), "SKIP"),
    ],
)
def test_the_worst_part_decides(monkeypatch, tmp_path, run, status) -> None:
    (line,) = lines_of(monkeypatch, tmp_path, [("case", run)])
    assert line.status == status


def test_missing_data_is_a_skip_without_a_mirror_and_a_failure_with_one(
    monkeypatch, tmp_path
) -> None:
    cases = [("case", raises(AssetMissing("needs a.npz")))]
    monkeypatch.delenv("PAPERS_MIRROR", raising=False)
    assert lines_of(monkeypatch, tmp_path, cases)[0].status == "SKIP"
    monkeypatch.setenv("PAPERS_MIRROR", str(tmp_path))
    assert lines_of(monkeypatch, tmp_path, cases)[0].status == "FAIL"


def test_a_recording_without_a_reader_fails(tmp_path: Path) -> None:
    file = tmp_path / "unknown.json"
    file.write_text("{}")
    (line,) = parity.run_recordings([file])
    assert line.status == "FAIL"
    assert "no reader" in line.reason


def test_fingerprints_tell_shape_value_and_nan() -> None:
    x = parity.seeded_input("x", (2, 3, 5))
    recorded = parity.fingerprint(x)
    assert parity.fingerprint_error(x, recorded) == 0
    assert parity.fingerprint_error(x + 0.5, recorded) > 0.1
    assert parity.fingerprint_error(x.reshape(3, 2, 5), recorded) == math.inf
    assert parity.fingerprint_error(x * math.nan, recorded) == math.inf


def test_values_are_compared_relative_to_the_largest() -> None:
    assert parity.values_error([1.0, 2.0], [1.0, 4.0]) == 0.5
    assert parity.values_error(torch.tensor(3.0), 3.0) == 0
    assert parity.values_error([1.0], [1.0, 2.0]) == math.inf
