"""Seeds derived from what a draw is for, and the state of the global random generators."""

from __future__ import annotations

import contextlib
import hashlib
import random
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def seed_from(*numbers: int) -> int:
    """A 63-bit seed that depends on all ``numbers`` and on their order.

    Neighbouring seeds, epochs and indices give unrelated generators, which adding them up
    would not: (seed 0, epoch 1) and (seed 1, epoch 0) must differ.
    """
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


def seed_cpu_generators(seed: int) -> None:
    """Seed python's, numpy's and torch's global CPU generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def seed_everything(seed: int) -> None:
    """``seed_cpu_generators`` and the generators of all GPUs."""
    seed_cpu_generators(seed)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The state of all global generators, in types that ``weights_only`` loading accepts."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.array(keys)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        # Each process drives one GPU: its current device.
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what ``random_state`` returned.

    A state that was taken on a GPU and is restored without one (or the other way round) leaves
    the GPU's generator as it is.
    """
    random.setstate(state["python"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy(), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextlib.contextmanager
def cpu_generators_kept() -> Iterator[None]:
    """Leave python's, numpy's and torch's CPU generators as they were found."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
