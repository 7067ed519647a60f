"""A package installs alone, in a clean environment, with pip and with uv."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_a_package_installs_alone(root: Path, package: str, installer: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = str(tmp_path / "env" / "bin" / "python")
    constraint = ["--constraint", str(root / "constraints.txt")]
    target = ["--editable", str(root / "packages" / package)]
    if installer == "pip":
        command = [python, "-m", "pip", "install", "--quiet", *constraint, *target]
    else:
        if importlib.util.find_spec("uv") is None:
            pytest.skip("uv is not installed")
        command = [sys.executable, "-m", "uv", "pip", "install", "--python", python]
        command += [*constraint, *target]
    subprocess.run(command, check=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    code = (
        f"import {package}, importlib.metadata as m, papers_shared; names = "
        "{d.metadata['Name'].lower() for d in m.distributions()}; print(*sorted(names))"
    )
    done = subprocess.run(
        [python, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    installed = set(done.stdout.split())
    others = {path.name for path in (root / "packages").iterdir() if path.is_dir()} - {package}
    assert not installed & others
    if package in ("adabin", "cbq"):
        assert "basicsr" not in installed
    done = subprocess.run(
        [str(Path(python).parent / package.replace("_", "-")), "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
