"""AdaBin: binary neural networks with adaptive binary sets.

Zhijun Tu, Xinghao Chen, Pengju Ren, Yunhe Wang, ECCV 2022, arXiv 2208.08084.

    from adabin import VARIANTS, build, load_released
    model = load_released()              # the authors' CIFAR-10 ResNet-20
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "AdaBinConv2d": "layers",
    "Maxout": "layers",
    "Config": "model",
    "VARIANTS": "model",
    "build": "model",
    "load_official": "official",
    "load_released": "official",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"adabin.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'adabin' has no attribute {name!r}")
