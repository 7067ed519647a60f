"""Pruning: weights (magnitude, Wanda, SparseGPT; N:M), heads and channels, layers, tokens.

Each algorithm is a function on plain tensors or modules and can be used alone:

    keep = wanda_keep(weight, statistic.value, Pattern.parse("2:4"))
    result = sparsegpt(weight, hessian.value, Pattern(0.5))
    report = prune_weights(model, batches, method="sparsegpt", pattern="2:4")
    report = prune_structured(model, batches, ratio=0.25)      # reloads with stock classes
    model, report = drop_layers(model, batches, count=3)
    apply_tome(vit, r=8)
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "H2OCache": "context",
    "InputNorms": "weights",
    "Pattern": "weights",
    "PruneReport": "sequential",
    "SparseGPTResult": "sparsegpt",
    "apply_evit": "tokens",
    "apply_h2o": "context",
    "apply_tome": "tome",
    "block_influence": "layers",
    "device_support": "semi_structured",
    "drop_layers": "layers",
    "load_pruned": "removal",
    "magnitude_keep": "weights",
    "prune_structured": "structured",
    "prune_vit_structured": "vit",
    "prune_vit_weights": "vit",
    "prune_weights": "sequential",
    "save_pruned": "removal",
    "sparse_bytes": "semi_structured",
    "sparsegpt": "sparsegpt",
    "wanda_keep": "weights",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
