"""LIPT's networks beside published ones of their size, random weights, x4; on one CPU thread.

``python benchmarks/lipt_networks.py [--size 1280 720] [--quick]`` prints tables and writes
results/bench/lipt_networks.json. Candidates take turns within one run; a time is a median, a ratio
the median of the ratios within a round.

Networks: merged LIPT-Tiny and LIPT-Small, SwinIR-light (basicsr's), ELAN-light, RLFN, IMDN and SPAN
for a result of the paper's 1280 x 720, with their parameters, multiply-accumulates (attention's
products included) and peak memory beyond weights and input. The order is this machine's: on one
thread arithmetic decides, on a GPU the traffic of attention does.

Forms: LIPT-Tiny as it is trained and merged.

Shares: a profile of one call says how much of the time goes to attention, convolutions and the
rest. Attention is what its operator takes, gathers and products together; the 1x1 convolutions
around it are convolutions.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from lipt import VARIANTS, build, merge
from lipt import model as lipt_model
from lipt.model import LIPT, set_attention_backend
from papers_shared.complexity import count_macs, count_parameters, peak_memory
from papers_shared.networks import build as build_published
from papers_shared.tables.benchmark import save_benchmark, timed

SCALE = 4
PAPERS = {"LIPT-Tiny": "tiny_x4", "LIPT-Small": "small_x4"}
RIVALS = {
    "IMDN": "imdn_baseline_x4",
    "RLFN": "rlfn_x4",
    "SPAN": "span_x4",
    "ELAN-light": "elan_light_x4",
    "SwinIR-light": "swinir_light_x4",
}
SLOW = ("LIPT-Small", "ELAN-light", "SwinIR-light")  # seconds a call
BASELINE = "SwinIR-light"
ATTENTION = "window attention"


def networks() -> dict[str, nn.Module]:
    """Name to network, random weights, in eval mode and frozen; LIPT's merged."""
    torch.manual_seed(0)
    made = {name: merge(build(VARIANTS[variant])) for name, variant in PAPERS.items()}
    made |= {name: build_published(entry) for name, entry in RIVALS.items()}
    return {name: network.eval().requires_grad_(False) for name, network in made.items()}


def macs(network: nn.Module, x: Tensor) -> float:
    """Multiply-accumulates in G, products of attention included."""
    set_attention_backend(network, "reference")  # plain products, which the counter knows
    try:
        return count_macs(network, tuple(x.shape), rule="flop_counter").total / 2e9
    finally:
        set_attention_backend(network, "auto")


def compare(made: Mapping[str, nn.Module], x: Tensor, *, rounds: int) -> dict[str, Any]:
    """Time, cost and memory of every network; the fast ones once more among themselves."""
    functions = {name: partial(network, x) for name, network in made.items()}
    all_of_them = timed(functions, baseline=BASELINE, rounds=rounds)
    fast = {name: function for name, function in functions.items() if name not in SLOW}
    fast_ones = timed(fast, baseline="LIPT-Tiny", rounds=3 * rounds)
    rows = {}
    print(f"{'network':14} {'params, M':>9} {'GMACs':>7} {'ms':>9} {'faster':>7} {'peak, MB':>9}")
    for name, network in made.items():
        rows[name] = {
            "parameters": count_parameters(network),
            "gmacs": macs(network, x),
            "peak_bytes": peak_memory(functions[name]).bytes,
        }
        print(
            f"{name:14} {rows[name]['parameters'] / 1e6:9.3f} {rows[name]['gmacs']:7.2f} "
            f"{all_of_them['milliseconds'][name]:9.1f} {all_of_them['times_faster'][name]:6.2f}x "
            f"{rows[name]['peak_bytes'] / 1e6:9.1f}",
            flush=True,
        )
    ms = fast_ones["milliseconds"]
    print("the fast ones, again: " + ", ".join(f"{name} {ms[name]:.1f} ms" for name in ms))
    return {**all_of_them, "networks": rows, "fast": fast_ones}


def forms(x: Tensor, *, rounds: int) -> dict[str, Any]:
    """LIPT-Tiny as it is trained, in eval mode, and merged."""
    torch.manual_seed(0)
    trained = build(VARIANTS[PAPERS["LIPT-Tiny"]]).eval().requires_grad_(False)
    merged = merge(trained)
    functions = {"form of training": partial(trained, x), "merged": partial(merged, x)}
    wanted = trained(x)
    difference = ((merged(x) - wanted).abs().max() / wanted.abs().max()).item()
    measured = timed(functions, baseline="form of training", rounds=rounds, warmup=0)
    ms = measured["milliseconds"]
    print(
        f"LIPT-Tiny: form of training {ms['form of training']:.0f} ms, merged {ms['merged']:.0f} "
        f"ms, {measured['times_faster']['merged']:.2f}x faster; difference {difference:.1e}",
        flush=True,
    )
    return {**measured, "relative_difference": difference}


def shares(network: LIPT, x: Tensor) -> dict[str, float]:
    """Kind of operation to its share of the time of one call."""

    def scoped(operator: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            with record_function(ATTENTION):
                return operator(*args, **options)

        return run

    names = ("nvsm_attention", "nvsm_shared")
    scopes: dict[str, Any] = {n: scoped(getattr(lipt_model, n)) for n in names}
    with (
        mock.patch.multiple(lipt_model, **scopes),
        profile(activities=[ProfilerActivity.CPU]) as profiler,
    ):
        network(x)
    times = dict.fromkeys(("attention", "convolutions", "other"), 0.0)
    for event in profiler.events() or ():
        times[_kind(event)] += event.self_cpu_time_total
    total = sum(times.values())
    return {kind: value / total for kind, value in times.items()}


def _kind(event: Any) -> str:
    inside = event
    while inside is not None:
        if inside.name == ATTENTION:
            return "attention"
        inside = inside.cpu_parent
    return "convolutions" if "conv" in event.name else "other"


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write results/bench/lipt_networks.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--size", type=int, nargs=2, default=(1280, 720), help="width and height of the result"
    )
    parser.add_argument("--quick", action="store_true", help="128 x 64, under a minute")
    options = parser.parse_args(argv)
    width, height = (128, 64) if options.quick else options.size
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        x = 255 * torch.rand(1, 3, height // SCALE, width // SCALE)  # LIPT's range
        made = networks()
        results: dict[str, Any] = {"size": [width, height], "scale": SCALE}
        results["networks"] = compare(made, x, rounds=2)
        results["forms"] = forms(x, rounds=2)
        results["shares"] = {}
        for name in PAPERS:
            network = made[name]
            assert isinstance(network, LIPT)
            results["shares"][name] = shares(network, x)
            parts = results["shares"][name].items()
            print(f"{name}: " + ", ".join(f"{kind} {100 * s:.0f} %" for kind, s in parts))
    finally:
        torch.set_num_threads(before)
    save_benchmark("lipt_networks", results, distributions=["torch", "basicsr", "spandrel"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
