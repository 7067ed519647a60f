"""LIPT: latency-aware image processing transformer.

Junbo Qiao, Wei Li, Haizhen Xie, Hanting Chen, Jie Hu, Shaohui Lin, Jungong Han, IEEE TIP 34 (2025),
arXiv 2404.06075.

    from lipt import VARIANTS, build, merge
    network = build(VARIANTS["tiny_x4"])     # the form that is trained
    fast = merge(network)                    # the form that is run: one 3x3 convolution each
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Config": "model",
    "LIPT": "model",
    "VARIANTS": "model",
    "build": "model",
    "DiverseBranchBlock": "hrm",
    "merge": "hrm",
    "convert": "official",
    "guess_config": "official",
    "load_official": "official",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"lipt.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'lipt' has no attribute {name!r}")
