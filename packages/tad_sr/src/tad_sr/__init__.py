"""TAD-SR: one-step diffusion super-resolution by time-aware distillation.

He, Tang, Tu, Zhang, Cheng, Chen, Guo, Zhu, Wang, Gao, Hu, arXiv 2408.07476.

    from tad_sr import load_pipeline
    load_pipeline()(photo).images[0]     # four times as large, one evaluation of the network
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Config": "model",
    "VARIANTS": "model",
    "build": "model",
    "CHECKPOINTS": "official",
    "load_official": "official",
    "load_released": "official",
    "ProjectedDiscriminator": "discriminator",
    "TimeAwareDiscriminator": "discriminator",
    "LossConfig": "losses",
    "TADSRPipeline": "pipeline",
    "UNetModelSwinModel": "pipeline",
    "load_pipeline": "family",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"tad_sr.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'tad_sr' has no attribute {name!r}")
