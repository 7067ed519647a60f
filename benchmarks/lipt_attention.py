"""LIPT's window attention by gathers beside roll, pad, unfold and mask; on one CPU thread.

``python benchmarks/lipt_attention.py`` prints a table and writes results/bench/lipt_attention.json.
Both forms take turns within one run; a ratio is the median of the ratios within a round, so what
else the machine does hits both alike. Widths and windows are those of the three networks; Tiny and
Small apply the maps to the values of a second sub-block, Base does not. The rival unfolds without
copying: only the pixels that the mask keeps are copied.

Inputs are of deviation 0.5, so that no softmax is a single one: products with numbers too small for
float32's normal range would take most of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from papers_shared.complexity import compare_latency
from papers_shared.kernels import nvsm_attention, nvsm_shared
from papers_shared.kernels.nvsm_layout import Group, mask_positions
from papers_shared.tables.benchmark import save_benchmark

SIDE = 96
NETWORKS = {"Tiny": (32, 8, True), "Small": (64, 8, True), "Base": (144, 16, False)}
FORMATS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
REFERENCE, FAST = "reference", "fast"  # backends
ROUNDS = 21


def attention(x: Tensor, v: Tensor | None, window: int, *, backend: str) -> Tensor:
    """A shifted block's attention, and with ``v`` that of the sub-block that reuses its maps."""
    shift = window // 2
    sparse = Group(window, shift=shift, positions=mask_positions("sparse", window))
    plain = Group(window, shift=shift)
    y, shared = nvsm_attention(x, (plain, sparse), share=v is not None, backend=backend)
    if v is None or shared is None:
        return y
    return y + nvsm_shared(v, shared, (plain, plain))


def operation(width: int, window: int, *, shares: bool, layout: torch.memory_format) -> Any:
    """A function of ``backend``, on inputs of one size."""
    generator = torch.Generator().manual_seed(0)
    x, v = (
        (0.5 * torch.randn(1, channels, SIDE, SIDE, generator=generator)).contiguous(
            memory_format=layout
        )
        for channels in (2 * width, width)
    )
    return partial(attention, x, v if shares else None, window)


def with_gradients(made: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same forwards and backwards; gives the gradient of the first input."""

    def run(*, backend: str) -> Tensor:
        x, *rest = made.args  # type: ignore[attr-defined]
        x = x.detach().requires_grad_()
        y = attention(x, *rest, backend=backend)
        return torch.autograd.grad(y.square().sum(), x)[0]

    return run


def measure(made: Callable[..., Tensor], rounds: int = ROUNDS) -> dict[str, Any]:
    """Median milliseconds of both forms, the ratio and the largest difference."""
    forms = {name: partial(made, backend=name) for name in (REFERENCE, FAST)}
    outputs = {name: form() for name, form in forms.items()}
    compared = compare_latency(forms, baseline=REFERENCE, warmup=2, rounds=rounds)
    return {
        "milliseconds": {name: 1e3 * c.latency.median for name, c in compared.items()},
        "times_faster": compared[FAST].speedup,
        "times_faster_p10": compared[FAST].p10,
        "times_faster_p90": compared[FAST].p90,
        "largest_difference": (outputs[FAST] - outputs[REFERENCE]).abs().max().item(),
        "rounds": rounds,
    }


def line(case: Mapping[str, Any]) -> str:
    """One line of the printed table."""
    ms = case["milliseconds"]
    return (
        f"{case['network']:8} {case['pass']:10} {case['layout']:14} "
        f"{ms[REFERENCE]:14.2f} {ms[FAST]:9.2f} {case['times_faster']:7.2f} "
        f"{case['largest_difference']:10.1e}"
    )


def main() -> int:
    """Measure, print, and write results/bench/lipt_attention.json."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    results = []
    print(
        f"{'network':8} {'pass':10} {'layout':14} {'reference, ms':>14} {'fast, ms':>9} "
        f"{'faster':>7} {'difference':>10}"
    )
    for network, (width, window, shares) in NETWORKS.items():
        for layout, memory_format in FORMATS.items():
            made = operation(width, window, shares=shares, layout=memory_format)
            key = {"network": network, "layout": layout, "threads": 1}
            with torch.inference_mode():
                results.append(key | {"pass": "inference"} | measure(made))
            print(line(results[-1]), flush=True)
            if layout == "channels last":  # as the network gives it
                results.append(key | {"pass": "training"} | measure(with_gradients(made)))
                print(line(results[-1]), flush=True)
    torch.set_num_threads(before)
    save_benchmark("lipt_attention", {"side": SIDE, "results": results}, distributions=["torch"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
