"""Recordings of the authors' values, through our code: a PASS or FAIL line a case.

A recording is a JSON file of values that the authors' own code produced. The readers live in the
packages (entry point group ``papers_shared.parity``: recording name -> ``module:function``); a
reader takes the parsed file and yields ``(case, run)``, where ``run()`` returns parts
``(part, error, tolerance)``. Every recording is found by its file name, ``adabin.json`` or
``adabin_anything.json``.

Command line: ``python -m papers_shared.parity [FOLDER ...]``; without folders all recordings of
the repository (``*/tests/golden``).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from papers_shared.assets import MIRROR_VARIABLE, AssetMissing, mirrors
from papers_shared.name_seeded import (
    fingerprint,
    name_seeded_state_dict,
    normal,
    seeded_input,
)
from papers_shared.workspace import workspace_root

__all__ = [
    "CannotRun",
    "Case",
    "Part",
    "Run",
    "case_outcome",
    "fingerprint",
    "fingerprint_difference",
    "fingerprint_error",
    "name_seeded_state_dict",
    "named_cases",
    "no_reader",
    "normal",
    "refuse_unknown",
    "run_recordings",
    "seeded_input",
    "values_error",
]

READERS = "papers_shared.parity"
Case = Mapping[str, Any]
Part = tuple[str, float, float]  # what is compared, error, tolerance
Run = Callable[[], Iterable[Part]]
Reader = Callable[[Case], Iterator[tuple[str, Run]]]


class CannotRun(RuntimeError):
    """A case cannot run here (an optional library is missing); shown as SKIP with the reason."""


def no_reader(what: str, *case: Any) -> list[Part]:
    """Stands in for a reader that does not exist: its case fails.

    Args:
        what: names the section or kind.
        case: what a reader would have been called with.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"no reader for {what}")


def refuse_unknown(case: Case, known: Collection[str]) -> None:
    """Hold a case's keys against those that a reader compares.

    Raises:
        ValueError: for the first key that nothing would compare.
    """
    if unknown := [key for key in case if key not in known]:
        no_reader(repr(unknown[0]))


def named_cases(
    recording: Case,
    kinds: Mapping[str, Callable[[Case], Iterable[Part]]],
    *,
    full_size: Callable[[str, Case], Iterable[Part]],
    descriptions: Collection[str],
) -> Iterator[tuple[str, Run]]:
    """Every case of a recording whose sections ``cases`` and ``full_size`` hold cases by name.

    Args:
        recording: the parsed file.
        kinds: a case's ``kind`` -> its reader.
        full_size: reader of the other section, called with name and case.
        descriptions: sections that hold no cases. Any other fails.
    """
    for section, content in recording.items():
        if section == "full_size":
            for name, case in content.items():
                yield f"full_size {name}", partial(full_size, name, case)
        elif section == "cases":
            for name, case in content.items():
                kind = case.get("kind")
                yield name, partial(kinds.get(kind, partial(no_reader, f"kind {kind!r}")), case)
        elif section not in descriptions:
            yield section, partial(no_reader, f"section {section!r}")


def fingerprint_difference(value: Tensor, recorded: Mapping[str, Any]) -> float:
    """Largest absolute difference of mean, std, abs_max and the picked values.

    Args:
        value: our tensor, any shape.
        recorded: a fingerprint of the authors' tensor (``name_seeded.fingerprint``).

    Returns:
        the difference; inf when the shapes differ or a value is not finite.
    """
    if list(value.shape) != list(recorded["shape"]):
        return math.inf
    ours = fingerprint(value, picks=len(recorded["picked"]))
    pairs = [(ours[k], recorded[k]) for k in ("mean", "std", "abs_max") if k in recorded]
    pairs += zip(ours["picked"], recorded["picked"], strict=True)
    return _largest(abs(a - b) for a, b in pairs)


def fingerprint_error(value: Tensor, recorded: Mapping[str, Any]) -> float:
    """``fingerprint_difference`` relative to the recorded largest magnitude."""
    return fingerprint_difference(value, recorded) / max(recorded["abs_max"], 1e-30)


def values_error(value: Tensor | float | Sequence[float], recorded: Any) -> float:
    """Lists and scalars: largest |difference| / largest recorded magnitude."""
    ours = torch.as_tensor(value, dtype=torch.float64).detach().flatten()
    theirs = torch.as_tensor(recorded, dtype=torch.float64).flatten()
    if ours.shape != theirs.shape:
        return math.inf
    difference = _largest((ours - theirs).abs().tolist())
    return difference / max(theirs.abs().max().item(), 1e-30)


def _largest(differences: Iterable[float]) -> float:
    # max() would let a NaN pass; a NaN is as far away as can be.
    return max((d if math.isfinite(d) else math.inf for d in differences), default=0.0)


@dataclass(frozen=True)
class Line:
    """The outcome of one case."""

    status: str  # PASS | FAIL | SKIP
    recording: str
    case: str
    error: float = math.nan
    tolerance: float = math.nan
    reason: str = ""

    def __str__(self) -> str:
        head = f"{self.status}  {self.recording}  {self.case}"
        if self.status == "SKIP":
            return f"{head}  {self.reason}"
        numbers = f"  {self.error:.3g}  {self.tolerance:.3g}"
        return head + numbers + (f"  {self.reason}" if self.reason else "")


def run_recordings(paths: Sequence[Path]) -> Iterator[Line]:
    """Run every case of every recording; nothing that a case raises ends the run."""
    readers = {point.name: point for point in entry_points(group=READERS)}
    for path in paths:
        names = [n for n in readers if path.stem == n or path.stem.startswith((n + "_", n + "-"))]
        if not names:
            yield Line("FAIL", path.stem, "-", reason=f"no reader; known: {', '.join(readers)}")
            continue
        try:
            reader: Reader = readers[max(names, key=len)].load()
            for case, run in reader(json.loads(path.read_text(encoding="utf-8"))):
                yield _run_case(path.stem, case, run)
        except Exception as error:
            yield Line("FAIL", path.stem, "-", reason=_one_line(error))


def case_outcome(reader: Reader, recording: Case, wanted: str) -> dict[str, bool]:
    """What a reader makes of one case, for the tests of readers.

    Args:
        reader: yields ``(case, run)``.
        recording: the parsed file.
        wanted: a part of the case's name.

    Returns:
        part -> whether it is within its tolerance.

    Raises:
        ValueError: not exactly one case has such a name.
    """
    found = [run for name, run in reader(recording) if wanted in name]
    if len(found) != 1:
        raise ValueError(f"{len(found)} cases have {wanted!r} in their names, expected one")
    return {part: error <= tolerance for part, error, tolerance in found[0]()}


def _run_case(recording: str, case: str, run: Run) -> Line:
    try:
        parts = list(run())
    except AssetMissing as error:
        # With a mirror set the file should have been there: that is a failure, not a skip.
        if mirrors():
            return Line("FAIL", recording, case, reason=_one_line(error))
        return Line("SKIP", recording, case, reason=f"{error} ({MIRROR_VARIABLE} is not set)")
    except CannotRun as error:
        return Line("SKIP", recording, case, reason=str(error))
    except Exception as error:
        return Line("FAIL", recording, case, reason=_one_line(error))
    if not parts:
        return Line("FAIL", recording, case, reason="the reader compared nothing")
    part, difference, tolerance = max(parts, key=_badness)
    if difference <= tolerance:
        return Line("PASS", recording, case, difference, tolerance)
    return Line("FAIL", recording, case, difference, tolerance, f"at {part}")


def _badness(part: Part) -> float:
    _, error, tolerance = part
    if math.isnan(error):
        return math.inf
    return error / tolerance if tolerance > 0 else (math.inf if error > 0 else 0.0)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def find_recordings(folders: Sequence[Path]) -> list[Path]:
    """The recordings of some folders, or all that the repository holds.

    Raises:
        ValueError: a folder does not exist or holds no JSON file.
    """
    if not folders:
        root = workspace_root()
        if root is None:
            raise ValueError("no workspace above this folder; name a folder of recordings")
        patterns = ("shared/tests/golden/*.json", "packages/*/tests/golden/*.json")
        return sorted(path for pattern in patterns for path in root.glob(pattern))
    found: list[Path] = []
    for folder in folders:
        here = [folder] if folder.is_file() else sorted(folder.glob("*.json"))
        if not here:
            raise ValueError(f"{folder} holds no recordings (*.json)")
        found += here
    return found


def main(argv: list[str] | None = None) -> int:
    """Print a line a case; exit status 1 when any failed."""
    parser = argparse.ArgumentParser(
        prog="python -m papers_shared.parity", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("recordings", nargs="*", type=Path, help="folders or files of recordings")
    args = parser.parse_args(argv)
    try:
        paths = find_recordings(args.recordings)
    except ValueError as error:
        parser.error(str(error))
    counts = {"PASS": 0, "FAIL": 0, "SKIP": 0}
    for line in run_recordings(paths):
        print(line, flush=True)
        counts[line.status] += 1
    skipped = f", {counts['SKIP']} skipped" if counts["SKIP"] else ""
    print(f"{counts['PASS']} passed, {counts['FAIL']} failed{skipped}")
    return 1 if counts["FAIL"] or not counts["PASS"] + counts["SKIP"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
