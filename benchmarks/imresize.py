"""imresize beside basicsr's and torch's, on a CPU: milliseconds and ratios, one and two threads.

``python benchmarks/imresize.py`` prints a table and writes results/bench/imresize.json. All
candidates take turns within one run, so a ratio is fairer than the times it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from papers_shared._basicsr import basicsr_module
from papers_shared.complexity import compare_latency
from papers_shared.data.resize import imresize
from papers_shared.tables.benchmark import save_benchmark

CASES = {  # name -> shape, scale, rounds
    "1 x 3x1356x2040, 1/4": ((1, 3, 1356, 2040), 1 / 4, 11),
    "8 x 3x1356x2040, 1/4": ((8, 3, 1356, 2040), 1 / 4, 5),
    "1 x 3x1356x2040, 0.3": ((1, 3, 1356, 2040), 0.3, 7),
    "1 x 3x339x510, x4": ((1, 3, 339, 510), 4, 7),
}
OURS, BASICSR, TORCH = "papers_shared", "basicsr", "F.interpolate"


def candidates() -> dict[str, Callable[[Tensor, float], Tensor]]:
    """What is compared; F.interpolate is not the same function at the borders."""
    reference = basicsr_module("utils.matlab_functions").imresize  # one picture at a time
    return {
        OURS: imresize,
        BASICSR: lambda x, scale: torch.stack([reference(picture, scale) for picture in x]),
        TORCH: lambda x, scale: F.interpolate(
            x, scale_factor=scale, mode="bicubic", antialias=True
        ),
    }


def measure(x: Tensor, scale: float, rounds: int) -> dict[str, Any]:
    """Median milliseconds of each candidate, taking turns, and the ratios to ours."""
    functions = {name: partial(f, x, scale) for name, f in candidates().items()}
    outputs = {name: function() for name, function in functions.items()}
    compared = compare_latency(functions, baseline=OURS, warmup=1, rounds=rounds)
    return {
        "milliseconds": {name: 1e3 * c.latency.median for name, c in compared.items()},
        "times_faster_than_basicsr": 1 / compared[BASICSR].speedup,
        "times_faster_than_interpolate": 1 / compared[TORCH].speedup,
        "largest_difference_from_basicsr": (outputs[OURS] - outputs[BASICSR]).abs().max().item(),
        "rounds": rounds,
    }


def line(name: str, threads: int, result: Mapping[str, Any]) -> str:
    """One line of the printed table."""
    ms = result["milliseconds"]
    return (
        f"{name:22} {threads:7d} {ms[OURS]:10.1f} {ms[BASICSR]:10.1f} {ms[TORCH]:13.1f} "
        f"{result['times_faster_than_basicsr']:11.2f} "
        f"{result['times_faster_than_interpolate']:15.2f} "
        f"{result['largest_difference_from_basicsr']:10.1e}"
    )


def main() -> int:
    """Measure, print, and write results/bench/imresize.json."""
    before = torch.get_num_threads()
    results = []
    print(
        f"{'case':22} {'threads':>7} {'ours, ms':>10} {'basicsr':>10} {'F.interpolate':>13} "
        f"{'vs basicsr':>11} {'vs interpolate':>15} {'difference':>10}"
    )
    generator = torch.Generator().manual_seed(0)
    for name, (shape, scale, rounds) in CASES.items():
        x = torch.rand(shape, generator=generator)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            result = measure(x, scale, rounds)
            print(line(name, threads, result), flush=True)
            results.append({"case": name, "threads": threads, **result})
    torch.set_num_threads(before)
    save_benchmark("imresize", {"results": results}, distributions=["torch", "basicsr"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
