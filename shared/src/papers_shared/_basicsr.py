"""The only door to basicsr: imported lazily, with the alias that its release 1.4.2 needs.

basicsr (Apache-2.0, github.com/XPixelGroup/BasicSR) is an extra of papers_shared and does not build
on Python 3.13. Its release imports a torchvision module that torchvision 0.17 removed; the alias
below gives it the one function it takes from there.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

_REMOVED_MODULE = "torchvision.transforms.functional_tensor"


def basicsr_module(name: str) -> Any:
    """Import ``basicsr.<name>``, for example ``metrics.niqe``.

    Args:
        name: the module's name below ``basicsr``.

    Raises:
        ImportError: basicsr or something that it needs is not installed; says what to do.
    """
    try:
        _provide_removed_module()
        return importlib.import_module(f"basicsr.{name}")
    except ImportError as error:
        if sys.version_info >= (3, 13):
            remedy = "basicsr does not build on Python >= 3.13; use Python 3.11 or 3.12"
        else:
            remedy = "pip install 'papers-shared[basicsr]' (Python < 3.13)"
        cause = " ".join(str(error).split())
        raise ImportError(f"basicsr.{name} cannot be imported ({cause}): {remedy}") from error


def _provide_removed_module() -> None:
    if _REMOVED_MODULE in sys.modules:
        return
    try:
        importlib.import_module(_REMOVED_MODULE)
    except ModuleNotFoundError:
        functional = importlib.import_module("torchvision.transforms.functional")
        alias = types.ModuleType(_REMOVED_MODULE)
        alias.rgb_to_grayscale = functional.rgb_to_grayscale  # type: ignore[attr-defined]
        sys.modules[_REMOVED_MODULE] = alias
