"""DUKD: data upcycling knowledge distillation for image super-resolution.

Yun Zhang, Wei Li, Simiao Li, Hanting Chen, Zhijun Tu, Wenjia Wang, Bingyi Jing, Shaohui Lin, Jie
Hu, arXiv 2309.14162; published as AugKD at ICLR 2025.

    from dukd import DUKD
    distiller = DUKD(teacher, student)   # any networks, one picture in, one out
    distiller.loss(lr, hr).backward()    # instead of l1_loss(student(lr), hr)
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "CSD": "csd",
    "Config": "model",
    "DUKD": "distill",
    "Distiller": "distill",
    "LogitsKD": "distill",
    "METHODS": "methods",
    "InvertibleTransforms": "upcycling",
    "VARIANTS": "model",
    "build": "model",
    "guess_config": "official",
    "init_from": "official",
    "load_official": "official",
    "load_teacher": "teachers",
    "zoom_in": "upcycling",
    "zoom_out": "upcycling",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"dukd.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'dukd' has no attribute {name!r}")
