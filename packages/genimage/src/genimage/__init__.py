"""GenImage: a benchmark for detecting AI-generated images, its data layout and its detectors.

Mingjian Zhu et al. (Huawei Noah's Ark Lab), NeurIPS 2023 Datasets and Benchmarks, arXiv 2306.08571.

    from genimage import load_detector
    from genimage.pictures import open_picture
    detector = load_detector()                      # the small one that ships
    detector.judge([open_picture("photo.jpg")])     # probability of "generated"
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Config": "model",
    "VARIANTS": "model",
    "build": "model",
    "Detector": "detectors",
    "PRESETS": "detectors",
    "load_detector": "detectors",
    "make_detector": "detectors",
    "load_official": "official",
    "Degradation": "degradations",
    "open_index": "index",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"genimage.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'genimage' has no attribute {name!r}")
