"""Packed linear layers at batch 1 beside float32 ``F.linear`` and torch's int4 operator.

``python benchmarks/packed_linear.py`` prints a table and writes results/bench/packed_linear.json.
One CPU thread; all candidates take turns; the least of many rounds, for the product is bound by
memory and what else the machine does only adds. ``bytes`` is what a product reads of the matrix;
``bound`` is how long reading it takes at the rate at which this machine sums up a float32 tensor of
the same number of bytes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from papers_shared.kernels.packed_linear import LAYOUTS, pack_linear, packed_linear
from papers_shared.tables.benchmark import save_benchmark

SIZES = (4096, 1536)
TORCH_GROUPS = (32, 64, 128, 256)  # that torch's operator knows


def torch_int4(
    codes: Tensor, scale: Tensor, zero: Tensor, group: int
) -> Callable[[Tensor], Tensor]:
    """torch's own operator on the same matrix; bfloat16 scales and inputs."""
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    # w = (q - 8) s + b
    both = torch.stack([scale.T, ((8 - zero) * scale).T], -1).bfloat16().contiguous()
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, group, both)


def candidates(size: int, seed: int) -> dict[str, tuple[Callable[[], Tensor], int]]:
    """Name -> function and the bytes of its matrix."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, size, generator=generator)
    x = torch.randn(1, size, generator=generator)
    found: dict[str, tuple[Callable[[], Tensor], int]] = {
        "F.linear float32": (partial(F.linear, x, weight), weight.nbytes)
    }
    half = weight.bfloat16()
    found["F.linear bfloat16"] = (partial(F.linear, x.bfloat16(), half), half.nbytes)
    for bits in LAYOUTS:
        for group in (size, 64):
            shape = (size, size // group)
            codes = torch.randint(0, 2**bits, (size, size), generator=generator, dtype=torch.uint8)
            scale = torch.rand(shape, generator=generator) + 0.5
            zero = torch.randint(0, 2**bits, shape, generator=generator).float()
            packed = pack_linear(codes, scale, zero, bits=bits, group=group)
            name = f"W{bits} {'row' if group == size else f'g{group}'}"
            for kind in (torch.float32, torch.bfloat16):
                run = partial(packed_linear, x.to(kind), packed, backend="cpu")
                found[f"{name} {str(kind).removeprefix('torch.')}"] = (run, packed.nbytes)
            if bits == 4 and group in TORCH_GROUPS:
                theirs = partial(torch_int4(codes, scale, zero, group), x.bfloat16())
                found["torch int4 g64 bfloat16"] = (theirs, size * size // 2 + 4 * scale.numel())
    return found


def least(functions: dict[str, Callable[[], Any]], *, seconds: float) -> dict[str, float]:
    """Seconds of each function: the least of all rounds, in turns."""
    best = dict.fromkeys(functions, float("inf"))
    ends = time.perf_counter() + seconds
    rounds = 0
    while time.perf_counter() < ends or rounds < 5:
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            best[name] = min(best[name], time.perf_counter() - began)
        rounds += 1
    return best


def measure(size: int, *, seconds: float) -> dict[str, Any]:
    """Milliseconds, bytes and bound of all candidates at one size."""
    found = candidates(size, seed=0)
    functions: dict[str, Callable[[], Any]] = {name: run for name, (run, _) in found.items()}
    readers = {
        f"read {count}": torch.zeros(count // 4).sum for count in {c for _, c in found.values()}
    }
    times = least(functions | readers, seconds=seconds)
    baseline = times["F.linear float32"]
    return {
        "size": size,
        "candidates": {
            name: {
                "milliseconds": 1e3 * times[name],
                "bytes": count,
                "bound_milliseconds": 1e3 * times[f"read {count}"],
                "times_faster_than_float32": baseline / times[name],
            }
            for name, (_, count) in found.items()
        },
    }


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write results/bench/packed_linear.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="a size")
    seconds = parser.parse_args(argv).seconds
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    results = []
    for size in SIZES:
        results.append(measure(size, seconds=seconds))
        print(f"\n{size} x {size}, batch 1: milliseconds, MB, bound, times faster than float32")
        for name, row in results[-1]["candidates"].items():
            print(
                f"  {name:26} {row['milliseconds']:8.3f} {row['bytes'] / 1e6:7.2f} "
                f"{row['bound_milliseconds']:8.3f} {row['times_faster_than_float32']:6.1f}x"
            )
    torch.set_num_threads(before)
    save_benchmark("packed_linear", {"results": results}, distributions=["torch"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
