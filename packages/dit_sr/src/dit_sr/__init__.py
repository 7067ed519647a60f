"""DiT-SR: super-resolution with a U-shaped, isotropic diffusion transformer.

Kun Cheng, Lei Yu, Zhijun Tu et al., AAAI 2025, arXiv 2409.19589.

    from dit_sr import DiTSRPipeline, VARIANTS, build, load_official
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Config": "model",
    "DiTSR": "model",
    "VARIANTS": "model",
    "build": "model",
    "CHECKPOINTS": "official",
    "load_official": "official",
    "load_released": "official",
    "DiTSRModel": "pipeline",
    "DiTSRPipeline": "pipeline",
    "load_pipeline": "family",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"dit_sr.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'dit_sr' has no attribute {name!r}")
