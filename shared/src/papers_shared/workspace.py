"""Where things lie: the workspace's root, the installed papers, the files beside a package."""

from __future__ import annotations

import importlib.util
from importlib.metadata import entry_points
from pathlib import Path

PAPERS = "papers_shared.papers"  # entry point group: paper -> import name


def papers() -> dict[str, str]:
    """The installed paper packages (and ``shared`` itself): name -> import name."""
    return {point.name: point.value for point in sorted(entry_points(group=PAPERS))}


def package_folder(module: str) -> Path:
    """The folder of an importable top-level package, found without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"package {module!r} is not installed; pip install -e packages/{module}")
    return Path(spec.submodule_search_locations[0])


def package_file(module: str, name: str) -> Path:
    """A file or folder shipped with a package.

    In a wheel it lies inside the import package; in a source checkout two levels up, beside
    pyproject.toml.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    inside = package_folder(module)
    for folder in (inside, inside.parents[1]):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"{name} of {module} is neither in {inside} nor in {inside.parents[1]}")


def workspace_root(start: Path | None = None) -> Path | None:
    """The checkout's top folder: the nearest one upwards that holds packages/ and shared/.

    Looked for from ``start`` (default: the current folder), then from this source file.
    """
    for origin in (start or Path.cwd(), Path(__file__).resolve()):
        for folder in (origin, *origin.parents):
            if (folder / "packages").is_dir() and (folder / "shared" / "pyproject.toml").is_file():
                return folder
    return None
