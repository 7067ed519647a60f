"""CBQ: cross-block quantization for large language models.

Xin Ding, Xiaoyu Liu, Zhijun Tu, Yun Zhang, Wei Li, Jie Hu, Hanting Chen, Yehui Tang, Zhiwei Xiong,
Baoqun Yin, Yunhe Wang, ICLR 2025, arXiv 2312.07950.

    from cbq import preset, quantize
    result = quantize(model, segments, preset("best", bits=2))   # model: transformers, causal
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "CBQLinear": "layers",
    "Distance": "losses",
    "METHODS": "methods",
    "PRESETS": "settings",
    "Quantized": "pipeline",
    "Settings": "settings",
    "activation_scale": "cfp",
    "find_outliers": "cfp",
    "load_quantized": "output",
    "preset": "settings",
    "quantize": "pipeline",
    "rotate": "rotation",
    "save_quantized": "output",
    "truncate_weight": "cfp",
    "windows": "windows",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"cbq.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'cbq' has no attribute {name!r}")
