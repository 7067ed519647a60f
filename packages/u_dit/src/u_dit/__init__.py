"""U-DiT: diffusion transformers in a U-shape whose attention works on downsampled tokens.

Tian, Tu, Chen, Hu, Xu, Wang, NeurIPS 2024, arXiv 2405.02730.

    from u_dit import VARIANTS, build, fuse, load_official, load_pipeline
    build(VARIANTS["U-DiT-S"])                        # fresh weights
    load_pipeline("U-DiT-B-400k.pt", vae="sd-vae-ft-ema")([207], seeds=[0]).images[0]
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Config": "model",
    "DownsampledAttention": "attention",
    "UDiT": "model",
    "UDiTBlock": "model",
    "VARIANTS": "model",
    "build": "model",
    "fuse": "model",
    "DIT_VARIANTS": "dit",
    "DiT": "dit",
    "DiTConfig": "dit",
    "CHECKPOINTS": "official",
    "load_checkpoint": "official",
    "load_official": "official",
    "UDiTModel": "pipeline",
    "UDiTPipeline": "pipeline",
    "load_pipeline": "pipeline",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"u_dit.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'u_dit' has no attribute {name!r}")
