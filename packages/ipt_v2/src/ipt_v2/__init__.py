"""IPT-V2: efficient image processing transformer using hierarchical attentions.

Tu, Du, Chen, Wang, Li, Hu, Wang, arXiv 2404.00633.

    from ipt_v2 import VARIANTS, build, load_restorer
    build(VARIANTS["b"])                 # a restoration network of our size, fresh weights
    load_restorer("mini_denoise_25")     # one with its task, from a file or shipped
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "FCSA": "attention",
    "GGSA": "attention",
    "MDTA": "attention",
    "RepLeFFN": "feedforward",
    "merge": "feedforward",
    "Config": "model",
    "FGBlock": "model",
    "IPTV2": "model",
    "VARIANTS": "model",
    "build": "model",
    "GENERATION_VARIANTS": "generation",
    "IPTUNet": "generation",
    "UNetConfig": "generation",
    "load_official": "official",
    "FAMILY": "family",
    "load_restorer": "family",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"ipt_v2.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'ipt_v2' has no attribute {name!r}")
