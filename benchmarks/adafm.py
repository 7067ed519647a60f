"""AdaFM as a matrix product beside the Fourier transforms, alone and after a group norm; on a CPU.

``python benchmarks/adafm.py`` prints a table and writes results/bench/adafm.json. Both forms take
turns within one run; a ratio is the median of the ratios within a round, so what else the machine
does hits both alike. The size is that of DiT-SR's first stage for a 64x64 latent. The rival is
rfft2, product and irfft2 of all patches at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from papers_shared.complexity import compare_latency
from papers_shared.kernels import adafm, group_norm_adafm
from papers_shared.tables.benchmark import save_benchmark

CHANNELS, SIDE, PATCH, GROUPS = 192, 64, 8, 32
BATCHES = (1, 4)
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
FOURIER, MATRIX = "reference", "matrix"  # backends
ROUNDS = 31


def operations(batch: int, layout: torch.memory_format) -> dict[str, Callable[..., Tensor]]:
    """Name to a function of ``backend``, on inputs of one size."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, CHANNELS, SIDE, SIDE, generator=generator)
    x = x.contiguous(memory_format=layout)
    gains = torch.randn(batch, PATCH * (PATCH // 2 + 1), generator=generator)
    weight, bias = torch.randn(2, CHANNELS, generator=generator)
    norm = partial(group_norm_adafm, x, gains, weight, bias, num_groups=GROUPS)
    return {
        "AdaFM": partial(adafm, x, gains, patch_size=PATCH),
        "group norm, AdaFM": partial(norm, patch_size=PATCH),
    }


@torch.inference_mode()
def measure(operation: Callable[..., Tensor], rounds: int = ROUNDS) -> dict[str, Any]:
    """Median milliseconds of both forms, the ratio and the largest difference."""
    forms = {name: partial(operation, backend=name) for name in (FOURIER, MATRIX)}
    outputs = {name: form() for name, form in forms.items()}
    compared = compare_latency(forms, baseline=FOURIER, rounds=rounds)
    return {
        "milliseconds": {name: 1e3 * c.latency.median for name, c in compared.items()},
        "times_faster": compared[MATRIX].speedup,
        "times_faster_p10": compared[MATRIX].p10,
        "times_faster_p90": compared[MATRIX].p90,
        "largest_difference": (outputs[MATRIX] - outputs[FOURIER]).abs().max().item(),
        "rounds": rounds,
    }


def line(case: Mapping[str, Any]) -> str:
    """One line of the printed table."""
    ms = case["milliseconds"]
    return (
        f"{case['operation']:18} {case['batch']:6d} {case['layout']:14} {case['threads']:7d} "
        f"{ms[FOURIER]:12.2f} {ms[MATRIX]:11.2f} {case['times_faster']:7.2f} "
        f"{case['largest_difference']:10.1e}"
    )


def main() -> int:
    """Measure, print, and write results/bench/adafm.json."""
    before = torch.get_num_threads()
    results = []
    print(
        f"{'operation':18} {'batch':>6} {'layout':14} {'threads':>7} {'Fourier, ms':>12} "
        f"{'matrix, ms':>11} {'faster':>7} {'difference':>10}"
    )
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for batch in BATCHES:
            for layout, memory_format in FORMATS.items():
                for name, operation in operations(batch, memory_format).items():
                    key = {"operation": name, "batch": batch, "layout": layout, "threads": threads}
                    results.append(key | measure(operation))
                    print(line(results[-1]), flush=True)
    torch.set_num_threads(before)
    shape = {"channels": CHANNELS, "side": SIDE, "patch_size": PATCH, "num_groups": GROUPS}
    save_benchmark("adafm", shape | {"results": results}, distributions=["torch"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
