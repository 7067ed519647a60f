"""Where a reproduced value comes from: command, commit, seed, device, versions, data, date."""

from __future__ import annotations

import functools
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from papers_shared.workspace import package_folder

if TYPE_CHECKING:
    from papers_shared.assets import Resolved


@dataclass(frozen=True)
class Provenance:
    """What has to be known to compute a value again.

    Attributes:
        command: computes the row again, from the workspace's root.
        commit: of the checkout that the code ran from, or why there is none.
        modified: whether files other than results differed from that commit.
        seed: handed to the recipe.
        device: processor and threads, or the graphics card.
        versions: of Python and of the libraries, by name.
        assets: data and checkpoints used: name -> form and checksums of its files.
        date: when the recipe ended, UTC, ISO 8601.
        seconds: how long it ran.
        settings: of the recipe.
    """

    command: str
    commit: str
    modified: bool
    seed: int
    device: str
    versions: Mapping[str, str]
    assets: Mapping[str, Any]
    date: str
    seconds: float
    settings: Mapping[str, Any]

    @property
    def code(self) -> str:
        """``commit 0123456789 with changes``, or why there is no commit."""
        if len(self.commit) < 40:
            return self.commit
        return f"commit {self.commit[:10]}" + (" with changes" if self.modified else "")

    @property
    def line(self) -> str:
        """The parts a reader asks for first, in one line."""
        parts = [self.date[:10], self.code, self.device, f"seed {self.seed}"]
        if "torch" in self.versions:
            parts.insert(2, f"torch {self.versions['torch']}")
        if self.assets:
            used = (f"{name} ({found['form']})" for name, found in self.assets.items())
            parts.append("with " + " and ".join(used))
        return ", ".join(parts)


def collect(
    module: str,
    *,
    command: str,
    seed: int,
    device: str,
    assets: Mapping[str, Resolved],
    seconds: float,
    settings: Mapping[str, Any],
    libraries: tuple[str, ...] = (),
) -> Provenance:
    """The provenance of what a recipe of package ``module`` has just computed.

    Args:
        module: import name of the paper's package.
        command: what computes it again.
        seed: the seed that the recipe was given.
        device: the device that the recipe was given, as torch names it.
        assets: data and checkpoints that the recipe was given.
        seconds: how long it ran.
        settings: of the recipe, as JSON can hold them.
        libraries: further distributions whose versions matter.
    """
    commit, modified = _commit(module)
    names = dict.fromkeys(("torch", "numpy", "papers-shared", module, *libraries))
    versions = {"python": platform.python_version()}
    versions |= {name: found for name in names if (found := _version(name))}
    return Provenance(
        command=command,
        commit=commit,
        modified=modified,
        seed=seed,
        device=describe_device(device),
        versions=versions,
        assets={
            name: {"form": found.form, "checksums": dict(found.checksums)}
            for name, found in assets.items()
        },
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        settings=settings,
    )


def describe_device(device: str) -> str:
    """``cpu`` or ``cuda`` -> processor and threads, or the graphics card's name."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}"


@functools.cache
def processor() -> str:
    """The processor's name, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # the module has another distribution name: not listed
        return ""


# Written by the rows themselves, one after the other: they do not make the checkout "modified".
_NOT_RESULTS = ":(top,exclude,glob)**/results/**"


@functools.cache
def _commit(module: str) -> tuple[str, bool]:
    source = package_folder(module).parents[1]
    if not (source / "pyproject.toml").is_file():
        # A wheel: site-packages may lie in anyone's repository.
        return "installed from a wheel", False
    try:
        head = _git(source, "rev-parse", "HEAD")
        return head, bool(_git(source, "status", "--porcelain", "--", ":/", _NOT_RESULTS))
    except (OSError, subprocess.CalledProcessError):
        return "not under git", False


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
