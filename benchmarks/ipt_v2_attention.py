"""IPT-V2's windowed channel attention: the fused form beside the definition; on a CPU, one thread.

``python benchmarks/ipt_v2_attention.py`` prints a table and writes results/bench. Both forms take
turns within one run; a ratio is the median of the ratios within a round, so what else the machine
does hits both alike. The maps are those of our size B's levels for a 128x128 crop, in the layout
that the network hands over (channels last) and in the other one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from papers_shared.complexity import compare_latency
from papers_shared.kernels import window_channel_attention
from papers_shared.tables.benchmark import save_benchmark

WINDOW = 8
# Level: channels, heads, side of the map.
LEVELS = {
    "encoder 1": (48, 1, 128),
    "encoder 2": (96, 2, 64),
    "encoder 3": (192, 4, 32),
    "latent": (384, 8, 16),
    "decoder 1": (96, 1, 128),
}
FORMATS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
BACKENDS = ("reference", "fused")
ROUNDS = 15


def forward(qkv: Tensor, base: Any, shifted: Any, *, backend: str) -> Tensor:
    """Inference."""
    with torch.inference_mode():
        return window_channel_attention(qkv, base, shifted, backend=backend)


def training(qkv: Tensor, base: Any, shifted: Any, *, backend: str) -> Tensor:
    """Forwards and backwards; returns the gradient of qkv."""
    qkv = qkv.detach().requires_grad_()
    y = window_channel_attention(qkv, base, shifted, backend=backend)
    leaves = [qkv, *base, *shifted]
    return torch.autograd.grad(y, leaves, torch.ones_like(y))[0]


def inputs(channels: int, heads: int, side: int, layout: torch.memory_format) -> tuple[Any, ...]:
    """A map of random values, and the parameters of both branches."""
    generator = torch.Generator().manual_seed(0)

    def branch() -> tuple[Tensor, ...]:
        shapes = [(heads, 1, 1), (heads, 1, WINDOW**2), (1, heads, WINDOW, WINDOW)]
        drawn = [1 + 0.1 * torch.randn(shape, generator=generator).abs() for shape in shapes]
        return tuple(t.requires_grad_() for t in drawn)

    qkv = torch.randn(1, 3 * channels, side, side, generator=generator)
    return qkv.contiguous(memory_format=layout), branch(), branch()


def measure(operation: Callable[..., Tensor], given: tuple[Any, ...]) -> dict[str, Any]:
    """Median milliseconds of both forms, the ratio and the largest difference."""
    forms = {name: partial(operation, *given, backend=name) for name in BACKENDS}
    outputs = [form() for form in forms.values()]
    compared = compare_latency(forms, baseline="reference", warmup=1, rounds=ROUNDS)
    return {
        "milliseconds": {name: 1e3 * c.latency.median for name, c in compared.items()},
        "times_faster": compared["fused"].speedup,
        "times_faster_p10": compared["fused"].p10,
        "times_faster_p90": compared["fused"].p90,
        "largest_difference": (outputs[0] - outputs[1]).abs().max().item(),
        "rounds": ROUNDS,
    }


def line(case: Mapping[str, Any]) -> str:
    """One line of the printed table."""
    ms = case["milliseconds"]
    return (
        f"{case['level']:10} {case['operation']:9} {case['layout']:14} {ms['reference']:14.2f} "
        f"{ms['fused']:10.2f} {case['times_faster']:7.2f} {case['largest_difference']:10.1e}"
    )


def main() -> int:
    """Measure, print, and write results/bench/ipt_v2_attention.json."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    results = []
    print(
        f"{'level':10} {'operation':9} {'layout':14} {'definition, ms':>14} {'fused, ms':>10} "
        f"{'faster':>7} {'difference':>10}"
    )
    for level, (channels, heads, side) in LEVELS.items():
        for layout, memory_format in FORMATS.items():
            given = inputs(channels, heads, side, memory_format)
            for name, operation in (("inference", forward), ("training", training)):
                key = {"level": level, "operation": name, "layout": layout}
                size = {"channels": channels, "heads": heads, "side": side}
                results.append(key | size | measure(operation, given))
                print(line(results[-1]), flush=True)
    torch.set_num_threads(before)
    shape = {"window": WINDOW, "batch": 1, "threads": 1}
    save_benchmark("ipt_v2_attention", shape | {"results": results}, distributions=["torch"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
