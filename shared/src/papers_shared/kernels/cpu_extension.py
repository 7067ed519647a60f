"""C++ extensions of the kernels: compiled on first use, kept in the user's cache.

A library's name holds its sources, torch and Python, so that a change of any builds it anew.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from papers_shared.assets import cache_folder


class ExtensionError(RuntimeError):
    """The C++ extension cannot be built, loaded or run here; the message says why."""


def load_extension(name: str, source: str, *, flags: Sequence[str]) -> ModuleType:
    """The compiled form of ``csrc/<source>``, built into the cache where it is not there yet.

    Args:
        name: of the library; a stamp is added.
        source: a file of csrc; all headers there count as its own.
        flags: of the compiler.

    Raises:
        ExtensionError: no compiler or no ninja, or the build failed.
    """
    folder = Path(__file__).parent / "csrc"
    stamp = hashlib.sha256(f"{torch.__version__} {sys.version} {list(flags)}".encode())
    for path in [folder / source, *sorted(folder.glob("*.h"))]:
        stamp.update(path.read_bytes())
    name = f"{name}_{stamp.hexdigest()[:12]}"
    library = cache_folder() / "extensions" / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not library.exists():
        _build(name, folder / source, library, flags)
    return _import(name, library)


def _import(name: str, library: Path) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(name, str(library))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None  # a loader was given
    try:
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        raise ExtensionError(f"{library} cannot be loaded ({error}); delete it") from error
    return module


def _build(name: str, source: Path, library: Path, flags: Sequence[str]) -> None:
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise ExtensionError(
            f"no C++ compiler {compiler!r} found: install g++ or clang++, or set CXX"
        )
    from torch.utils import cpp_extension

    if shutil.which("ninja") is None:  # pip installs it beside this Python, maybe not on PATH
        os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")
    print(f"compiling {name} into {library.parent} (once)", file=sys.stderr)
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        # A folder of its own and a rename: builds at the same time, or a killed one, do no harm.
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            cpp_extension.load(
                name=name,
                sources=[str(source)],
                extra_cflags=[*flags, *(["-fopenmp"] if _is_gcc(compiler) else [])],
                build_directory=folder,
            )
            os.replace(Path(folder) / f"{name}.so", library)
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ExtensionError(f"the C++ extension was not built: {last}") from error


def _is_gcc(compiler: str) -> bool:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return "Free Software Foundation" in version.stdout
