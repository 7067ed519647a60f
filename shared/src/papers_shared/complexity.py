"""What a network costs: parameters, operations, activations, latency, peak memory.

Every figure carries the rule or protocol it was obtained by, in words: the same network has
several "FLOPs" in the literature, twice as many where additions count, fewer where attention
products are left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from papers_shared._counting import (
    CONVOLUTIONS,
    TRANSPOSED,
    Inputs,
    copy_on,
    count_calls,
    count_modules,
    count_operators,
    module_macs,
)

Rule = Literal["conv_linear", "flop_counter", "calflops"]

RULES: Mapping[Rule, str] = {
    "conv_linear": (
        "multiply-accumulates of the convolution, transposed convolution and linear modules; "
        "biases, attention products and everything else are not counted"
    ),
    "flop_counter": (
        "FLOPs of torch.utils.flop_counter, two for each multiply-accumulate of a convolution, "
        "matrix product or attention operator"
    ),
    "calflops": (
        "FLOPs as the package calflops counts them: two for each multiply-accumulate of a "
        "convolution and one for each output element where it has a bias, two for each "
        "multiply-accumulate of a linear layer, five for each output element of a group "
        "normalization, one for each output element of SiLU, GELU and softmax and for each input "
        "element of a nearest-neighbour enlargement; attention products, FFTs, additions, "
        "products and everything else are not counted"
    ),
}


@dataclass(frozen=True)
class Operations:
    """A count of operations.

    Attributes:
        total: all that ``rule`` counts.
        binary: the part in modules that are binary; ``total - binary`` is full precision.
        by_module: name to count, modules that have none left out.
        by_kind: kind of operation to count: "convolution", "linear" and so on; operators' names
            under the rule "flop_counter".
        rule: how it was counted, in words.
    """

    total: int
    binary: int
    by_module: dict[str, int] = field(repr=False)
    by_kind: dict[str, int] = field(repr=False)
    rule: str


def count_parameters(model: nn.Module, *, trainable_only: bool = False) -> int:
    """Number of parameters, shared ones once; buffers are not counted."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def count_macs(
    model: nn.Module,
    inputs: Inputs,
    *,
    rule: Rule = "conv_linear",
    is_binary: Callable[[nn.Module], bool] | None = None,
    device: str = "meta",
) -> Operations:
    """Operations of one forward pass in eval mode; the model itself is left untouched.

    A convolution counts for every output element kernel size x input channels / groups, padding
    included; a transposed one for every input element kernel size x output channels / groups,
    cropped borders included; a linear module for every output element its input features.

    Args:
        model: any module.
        inputs: the input's shape, (1, C, H, W) for a count per image, or the tensors of the
            forward pass by position or by name.
        rule: "conv_linear" counts modules, "flop_counter" operators, "calflops" calls of torch's
            functions, by modules or directly; see ``RULES``.
        is_binary: which modules work on single bits.
        device: "meta" costs neither memory nor time; "cpu" for networks whose forward pass needs
            real values.

    Raises:
        ValueError: unknown rule, the network does not run on the meta device, or it has an
            nn.MultiheadAttention, which "calflops" cannot see into.
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; choose from {', '.join(RULES)}")
    network = copy_on(model, device)
    binary = {
        name
        for name, module in model.named_modules()
        if is_binary is not None and is_binary(module)
    }
    if rule == "conv_linear":
        entries = count_modules(network, inputs, module_macs, device=device)
    elif rule == "flop_counter":
        entries = count_operators(network, inputs, device=device)
    else:
        entries = count_calls(network, inputs, device=device)
    by_module: dict[str, int] = {}
    by_kind: dict[str, int] = {}
    for name, kind, number in entries:
        by_module[name] = by_module.get(name, 0) + number
        by_kind[kind] = by_kind.get(kind, 0) + number
    return Operations(
        total=sum(by_module.values()),
        binary=sum(count for name, count in by_module.items() if name in binary),
        by_module=by_module,
        by_kind=by_kind,
        rule=RULES[rule],
    )


def activation_elements(model: nn.Module, inputs: Inputs, *, device: str = "meta") -> int:
    """Output elements of all convolution modules, transposed ones too ("activations").

    Source:
        the measure of the NTIRE efficient super-resolution challenges.
    """

    def elements(module: nn.Module, given: Tensor, made: Tensor) -> int:
        return made.numel() if isinstance(module, CONVOLUTIONS + TRANSPOSED) else 0

    entries = count_modules(copy_on(model, device), inputs, elements, device=device)
    return sum(number for _, _, number in entries)


@dataclass(frozen=True)
class Latency:
    """Seconds of ``n`` calls."""

    median: float
    p10: float
    p90: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """A function's latency and how it stands to the baseline.

    Attributes:
        latency: of this function.
        speedup: baseline's time / this function's, median over the rounds; above 1 is faster.
        p10: tenth percentile of the rounds' ratios.
        p90: ninetieth percentile.
    """

    latency: Latency
    speedup: float
    p10: float
    p90: float


def measure_latency(
    fn: Callable[[], Any],
    *,
    warmup: int = 5,
    repeats: int = 30,
    device: str | torch.device = "cpu",
) -> Latency:
    """Wall-clock time of one call after warm-up; on a GPU from idle to idle.

    Args:
        fn: what is timed.
        warmup: calls before the first that counts.
        repeats: calls that count.
        device: where ``fn`` works; a CUDA device is synchronised before and after each call.

    Raises:
        ValueError: repeats < 1.
    """
    _check_repeats(repeats)
    for _ in range(warmup):
        fn()
    return _latency([_timed(fn, device) for _ in range(repeats)])


def compare_latency(
    functions: Mapping[str, Callable[[], Any]],
    *,
    baseline: str,
    warmup: int = 5,
    rounds: int = 30,
    device: str | torch.device = "cpu",
) -> dict[str, Comparison]:
    """Time several functions in turns, so that a busy or slowing machine hits all alike.

    Each round calls every function once, beginning with another one each time; ratios are taken
    within a round.

    Args:
        functions: name to function.
        baseline: the name that the others are compared with.
        warmup: calls of each before the first round.
        rounds: rounds that count.
        device: as for ``measure_latency``.

    Raises:
        ValueError: no such baseline, or rounds < 1.
    """
    if baseline not in functions:
        raise ValueError(f"no function {baseline!r} to compare with; there are {list(functions)}")
    _check_repeats(rounds)
    for fn in functions.values():
        for _ in range(warmup):
            fn()
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            times[name].append(_timed(functions[name], device))
    compared = {}
    for name in names:
        ratios = [a / b for a, b in zip(times[baseline], times[name], strict=True)]
        spread = _latency(ratios)
        compared[name] = Comparison(
            _latency(times[name]), speedup=spread.median, p10=spread.p10, p90=spread.p90
        )
    return compared


def _check_repeats(number: int) -> None:
    if number < 1:
        raise ValueError(f"{number} measurements asked for; at least 1 is needed")


def _timed(fn: Callable[[], Any], device: str | torch.device) -> float:
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    fn()
    if on_gpu:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _latency(times: Sequence[float]) -> Latency:
    ordered = sorted(times)
    last = len(ordered) - 1
    return Latency(
        median=statistics.median(ordered),
        p10=ordered[round(0.1 * last)],
        p90=ordered[round(0.9 * last)],
        n=len(ordered),
    )


@dataclass(frozen=True)
class PeakMemory:
    """Bytes, and the protocol in words."""

    bytes: int
    protocol: str


def peak_memory(fn: Callable[[], Any], *, device: str | torch.device = "cpu") -> PeakMemory:
    """Most memory that torch held at once during a call, beyond what it held before.

    What exists beforehand (weights, inputs) is not in the figure: build it inside ``fn`` if it is
    to be. On the CPU allocations are counted, not resident pages: the figure is the same on every
    run, and memory that libraries take behind torch's back is missing from it.

    Args:
        fn: what is measured; called once.
        device: "cpu" or a CUDA device.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        fn()
        torch.cuda.synchronize(device)
        return PeakMemory(
            torch.cuda.max_memory_allocated(device) - before,
            "growth of torch.cuda.max_memory_allocated during one call",
        )
    return PeakMemory(
        _peak_of_cpu_allocations(fn),
        "largest sum of living CPU tensor allocations made during one call, by torch.profiler",
    )


def _peak_of_cpu_allocations(fn: Callable[[], Any]) -> int:
    from torch.profiler import ProfilerActivity, profile

    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _no_stderr():
        profiler.start()
    try:
        fn()
    finally:
        with _no_stderr():
            profiler.stop()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = [
        (event["ts"], event["args"]["Bytes"])
        for event in events
        if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0
    ]
    living = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        living += change
        peak = max(peak, living)
    return peak


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Swallow what the profiler's C++ code says of its start and stop, on a user's terminal too."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
