"""Every recording of the authors' values that the repository holds, through our code."""

from __future__ import annotations

import pytest

from papers_shared.parity import find_recordings, run_recordings


@pytest.mark.parametrize("recording", find_recordings([]), ids=lambda path: path.stem)
def test_no_case_fails(recording, record_property) -> None:
    lines = list(run_recordings([recording]))
    skipped = [line for line in lines if line.status == "SKIP"]
    record_property("lines", [str(line) for line in lines])
    assert lines
    assert [str(line) for line in lines if line.status == "FAIL"] == []
    if len(skipped) == len(lines):
        pytest.skip(skipped[0].reason)
