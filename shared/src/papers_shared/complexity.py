"""What a network costs: parameters, operations, activations, latency, peak memory.

Every figure carries the rule or protocol it was obtained by, in words: the same network has
several "FLOPs" in the literature, twice as many where additions count, fewer where attention
products are left out.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

Rule = Literal["conv_linear", "flop_counter"]
# The shape of the one input, batch included, or the forward pass's arguments by position or name.
Inputs = Sequence[int] | Tensor | Sequence[Tensor] | Mapping[str, Tensor]

RULES: Mapping[Rule, str] = {
    "conv_linear": (
        "multiply-accumulates of the convolution, transposed convolution and linear modules; "
        "biases, attention products and everything else are not counted"
    ),
    "flop_counter": (
        "FLOPs of torch.utils.flop_counter, two for each multiply-accumulate of a convolution, "
        "matrix product or attention operator"
    ),
}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Operations:
    """A count of operations.

    Attributes:
        total: all that ``rule`` counts.
        binary: the part in modules that are binary; ``total - binary`` is full precision.
        by_module: name to count, modules that have none left out.
        rule: how it was counted, in words.
    """

    total: int
    binary: int
    by_module: dict[str, int] = field(repr=False)
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
        rule: "conv_linear" counts modules, "flop_counter" operators, see ``RULES``.
        is_binary: which modules work on single bits.
        device: "meta" costs neither memory nor time; "cpu" for networks whose forward pass needs
            real values.

    Raises:
        ValueError: unknown rule, or the network does not run on the meta device.
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; choose from {', '.join(RULES)}")
    network = _copy_on(model, device)
    binary = {
        name
        for name, module in model.named_modules()
        if is_binary is not None and is_binary(module)
    }
    if rule == "conv_linear":
        counts = _count_modules(network, inputs, _module_macs, device=device)
    else:
        counts = _count_operators(network, inputs, device=device)
    return Operations(
        total=sum(counts.values()),
        binary=sum(count for name, count in counts.items() if name in binary),
        by_module=counts,
        rule=RULES[rule],
    )


def activation_elements(model: nn.Module, inputs: Inputs, *, device: str = "meta") -> int:
    """Output elements of all convolution modules, transposed ones too ("activations").

    Source:
        the measure of the NTIRE efficient super-resolution challenges.
    """

    def elements(module: nn.Module, given: Tensor, made: Tensor) -> int:
        return made.numel() if isinstance(module, _CONVOLUTIONS + _TRANSPOSED) else 0

    return sum(_count_modules(_copy_on(model, device), inputs, elements, device=device).values())


def _module_macs(module: nn.Module, given: Tensor, made: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return made.numel() * module.in_features
    if isinstance(module, _CONVOLUTIONS):
        return made.numel() * math.prod(module.kernel_size) * module.in_channels // module.groups
    if isinstance(module, _TRANSPOSED):
        return given.numel() * math.prod(module.kernel_size) * module.out_channels // module.groups
    return 0


def _copy_on(model: nn.Module, device: str) -> nn.Module:
    # Handing deepcopy the finished copies of all tensors saves copying the weights themselves.
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in (*module._parameters.values(), *module._buffers.values()):
            _memorize(value, memo, device)
        for value in vars(module).values():  # tensors that are neither
            _memorize(value, memo, device)
    return copy.deepcopy(model, memo).eval()


def _memorize(value: Any, memo: dict[int, Any], device: str) -> None:
    if isinstance(value, Tensor) and id(value) not in memo:
        moved = value.detach().to(device, copy=True)
        memo[id(value)] = nn.Parameter(moved, False) if isinstance(value, nn.Parameter) else moved


def _forward(network: nn.Module, inputs: Inputs, device: str) -> None:
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, Mapping):
        kwargs = {name: value.to(device) for name, value in inputs.items()}
    elif isinstance(inputs, Tensor):
        args = [inputs.to(device)]
    elif all(isinstance(item, int) for item in inputs):
        args = [torch.zeros(*inputs, device=device)]
    else:
        args = [item.to(device) for item in inputs]  # type: ignore[union-attr]
    try:
        with torch.no_grad():
            network(*args, **kwargs)
    except (NotImplementedError, RuntimeError) as error:
        if device != "meta":
            raise
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{type(network).__name__} does not run on the meta device ({reason}); check the "
            "inputs, or count with device='cpu'"
        ) from error


def _count_modules(
    network: nn.Module,
    inputs: Inputs,
    count: Callable[[nn.Module, Tensor, Tensor], int],
    *,
    device: str,
) -> dict[str, int]:
    counts: dict[str, int] = {}

    def watch(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, given: tuple[Any, ...], made: Any) -> None:
            if number := count(module, given[0], made):
                counts[name] = counts.get(name, 0) + number

        module.register_forward_hook(hook)

    for name, module in network.named_modules():
        if isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)):
            watch(name, module)
    _forward(network, inputs, device)
    return counts


def _count_operators(network: nn.Module, inputs: Inputs, *, device: str) -> dict[str, int]:
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        _forward(network, inputs, device)
    root = type(network).__name__
    flops = {
        name.removeprefix(root).removeprefix("."): sum(operators.values())
        for name, operators in counter.get_flop_counts().items()
        if name != "Global"
    }
    # A module's figure includes those of the modules it calls; what is left is its own.
    own = dict(flops)
    for name in flops:
        caller = name
        while caller:
            caller = caller.rpartition(".")[0]
            if caller in flops:  # a ModuleList is called by nobody
                own[caller] -= flops[name]
                break
    return {name: number for name, number in own.items() if number}


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

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        fn()
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
