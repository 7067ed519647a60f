"""Fill a model with weights that depend only on each entry's name and shape.

Two implementations of one network that share a checkpoint layout get the same
weights from `name_seeded_state_dict`, so their outputs can be compared without
shipping a checkpoint. The golden values beside this file were recorded so.

The rule, for every floating entry of a state dict (integer entries and the names
in `keep` are left as they are):
  draw z ~ N(0, 1) in float32 from numpy's PCG64, seeded with crc32(name);
  ndim >= 2            z / sqrt(number of elements / first dimension)
  name ends 'running_var' or 'weight' or 'gamma' (ndim < 2)   1 + 0.1 * |z|
  anything else        0.1 * z
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping

import numpy as np
import torch


def normal(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """N(0, 1) float32 tensor of `shape`, a function of `name` alone."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return torch.from_numpy(np.asarray(rng.standard_normal(shape, dtype=np.float32)))


def name_seeded_state_dict(
    state: Mapping[str, torch.Tensor], keep: Collection[str] = ()
) -> dict[str, torch.Tensor]:
    """The state dict that the rule above gives for `state`'s names and shapes."""
    out = {}
    for name, old in state.items():
        if not old.is_floating_point() or name in keep:
            out[name] = old
            continue
        z = normal(name, tuple(old.shape))
        if old.ndim >= 2:
            z = z / math.sqrt(max(1, old.numel() // old.shape[0]))
        elif name.endswith(("running_var", "weight", "gamma")):
            z = 1 + 0.1 * z.abs()
        else:
            z = 0.1 * z
        out[name] = z.to(old.dtype)
    return out


def seeded_input(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The model input called `name` in a golden file: N(0, 1), float32."""
    return normal("input:" + name, shape)


def fingerprint(t: torch.Tensor, picks: int = 16) -> dict:
    """What a golden file keeps of an output: shape, moments, and `picks` values
    taken at equal strides of the flattened tensor."""
    flat = t.detach().float().flatten()
    idx = torch.linspace(0, flat.numel() - 1, picks).round().long()
    return {
        "shape": list(t.shape),
        "mean": flat.mean().item(),
        "std": flat.std().item(),
        "abs_max": flat.abs().max().item(),
        "picked": flat[idx].tolist(),
    }
