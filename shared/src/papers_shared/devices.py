"""The device that a command's ``--device auto|cpu|cuda`` names."""

from __future__ import annotations

import os

import torch


def pick_device(name: str, *, precision: str = "float32") -> torch.device:
    """``auto`` is a GPU where there is one; of several processes on a machine each takes its own.

    Args:
        name: ``auto``, or what ``torch.device`` takes.
        precision: of the computation, by torch's name.

    Raises:
        ValueError: cuda was asked for and is not there; float16 on a CPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device is visible to torch; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu" and precision == "float16":
        raise ValueError("float16 is for GPUs; on a CPU use --precision bfloat16 or float32")
    if name == "cuda":
        return torch.device(
            name, int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        )
    return torch.device(name)
