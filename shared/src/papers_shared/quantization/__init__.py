"""Weight quantization that several papers share: grids, start scales, GPTQ's solver, export.

rule = GridRule(bits=4, group=64, search="weighted")
quantized = round_to_nearest(weight, rule, importance=second_moment)   # RTN
quantized = gptq(weight, hessian.value, rule)                          # GPTQ
layer.weight.copy_(quantized.dequantize())
export_compressed_tensors(model, {"model.layers.0.mlp.up_proj": quantized}, folder)
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "FakeQuantLinear": "layers",
    "Grid": "grids",
    "GridRule": "grids",
    "Hessian": "solver",
    "QuantizeToken": "layers",
    "QuantizedWeight": "grids",
    "clamp_ste": "grids",
    "export_compressed_tensors": "export",
    "export_gptq": "export",
    "fake_quantize_activation": "layers",
    "gptq": "solver",
    "grid_from_range": "grids",
    "inverse_cholesky": "solver",
    "load_gptq": "export",
    "lsq": "layers",
    "minmax_grid": "grids",
    "pack_words": "words",
    "packed_layer": "layers",
    "quantize_attention": "attention",
    "quantized_bytes": "grids",
    "round_ste": "grids",
    "round_to_nearest": "grids",
    "search_grid": "grids",
    "unpack_words": "words",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"papers_shared.quantization.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'papers_shared.quantization' has no attribute {name!r}")
