"""What no file of the repository may hold, and what every one of them has to be."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

REGISTRIES = re.compile("|".join(["py" + r"pi\.org", "python" + "hosted", "npm" + r"js\.org"]))
MACHINE_PATHS = re.compile(r"(?<![\w./~-])/(?:work|root|home|Users)/\w")
LIMIT = 5_000_000  # bytes a file


@pytest.fixture(scope="module")
def files() -> list[Path]:
    root = Path(__file__).resolve().parents[1]
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [root / name for name in listed.stdout.splitlines() if (root / name).is_file()]


def text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def test_no_file_names_a_package_registry(files: list[Path]) -> None:
    assert [path for path in files if REGISTRIES.search(text_of(path))] == []


def test_no_file_names_a_path_of_one_machine(files: list[Path]) -> None:
    assert [path for path in files if MACHINE_PATHS.search(text_of(path))] == []


def test_no_file_is_large(files: list[Path]) -> None:
    assert [path for path in files if path.stat().st_size > LIMIT] == []


def test_no_data_or_checkpoints_of_others_are_committed(files: list[Path]) -> None:
    assert [p for p in files if p.suffix in {".pth", ".pt", ".th", ".npz", ".ckpt"}] == []


def test_constraints_hold_names_and_versions_only() -> None:
    path = Path(__file__).resolve().parents[1] / "constraints.txt"
    for line in path.read_text(encoding="utf-8").splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line), line
