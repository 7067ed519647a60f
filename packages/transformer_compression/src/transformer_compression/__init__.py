"""A survey on transformer compression (Tang et al., 2024, arXiv 2402.05964) as a toolkit.

    from transformer_compression import compress
    model, report = compress(model, "gptq", batches, bits=4, group=64)

``METHODS`` names every method; ``transformer-compression list`` shows them by the taxonomy.
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Data": "core",
    "METHODS": "methods",
    "Method": "core",
    "Outcome": "core",
    "Report": "core",
    "compress": "compressing",
    "export": "storage",
    "load": "storage",
    "save": "storage",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"transformer_compression.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'transformer_compression' has no attribute {name!r}")
