"""Operators with a plain-torch reference and fast versions; ``backend`` picks one.

Nothing is compiled on import; a C++ extension is built when a CPU backend first runs.
"""

from papers_shared.kernels.adafm import adafm, adafm_matrix, group_norm_adafm
from papers_shared.kernels.binary_conv2d import binary_conv2d
from papers_shared.kernels.nvsm import nvsm_attention, nvsm_shared
from papers_shared.kernels.packed_binary_conv2d import PackedBinaryConv2d, batch_norm_affine
from papers_shared.kernels.packed_binary_weight import PackedBinaryWeight, pack_weight
from papers_shared.kernels.window_channel_attention import window_channel_attention

__all__ = [
    "PackedBinaryConv2d",
    "PackedBinaryWeight",
    "adafm",
    "adafm_matrix",
    "batch_norm_affine",
    "binary_conv2d",
    "group_norm_adafm",
    "nvsm_attention",
    "nvsm_shared",
    "pack_weight",
    "window_channel_attention",
]
