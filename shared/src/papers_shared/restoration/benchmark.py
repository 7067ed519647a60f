"""How long a network takes here, form by form: the ``benchmark`` command of the packages."""

from __future__ import annotations

import contextlib
import functools
import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from papers_shared.checkpoints import atomic_path
from papers_shared.complexity import compare_latency, count_parameters
from papers_shared.devices import pick_device
from papers_shared.inference.memory import OutOfMemory, is_out_of_memory, peak_of_call
from papers_shared.restoration.family import RestorationFamily, Restorer
from papers_shared.restoration.prepare import open_restorer, task_of
from papers_shared.restoration.restore_commands import BenchmarkConfig
from papers_shared.restoration.task import Task

MERGED, TRAINING = "merged", "training form"


@dataclass(frozen=True)
class Timing:
    """One form of a network.

    Attributes:
        form: its name.
        median: seconds a picture, as are ``p10`` and ``p90``.
        per_second: pictures, 1 / median.
        speedup: over the first form, median of ratios within a round.
        peak_bytes: of tensors alive at once during one call (``peak_of_call``), weights and input
            not counted; None of compiled forms on a CPU, whose tensors nobody sees.
        parameters: of the form.
    """

    form: str
    median: float
    p10: float
    p90: float
    per_second: float
    speedup: float
    peak_bytes: int | None
    parameters: int


def measure_forms(
    restorer: Restorer, config: BenchmarkConfig, device: torch.device | str = "cpu"
) -> list[Timing]:
    """Time the forms of a network in turns, on one picture whose result has ``config.size``.

    Args:
        restorer: in training form, if ``config.unmerged``.
        config: which forms, how often, what size, which precision.
        device: where.

    Raises:
        ValueError: sizes or numbers that are not positive; the training form of merged weights.
        OutOfMemory: the picture does not fit.
    """
    width, height = config.size
    if min(width, height, config.runs) < 1 or config.warmup < 0:
        raise ValueError(
            f"expected a positive size and runs and a warmup of 0 or more, got {width} {height}, "
            f"{config.runs} and {config.warmup}"
        )
    dtype = getattr(torch, config.precision)
    sides = (-(-height // restorer.scale), -(-width // restorer.scale))
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, restorer.channels, *sides, generator=generator).to(device, dtype)
    forms = _forms(restorer.requires_grad_(False).to(device, dtype), config)
    calls: dict[str, Callable[[], Tensor]] = {
        name: functools.partial(form, _laid_out(picture, name)) for name, form in forms.items()
    }
    try:
        with torch.no_grad():
            compared = compare_latency(
                calls,
                baseline=next(iter(calls)),
                warmup=config.warmup,
                rounds=config.runs,
                device=device,
            )
            peaks = {name: _peak(name, call, device) for name, call in calls.items()}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"a result of {width} x {height} does not fit into memory; give a smaller --size"
        ) from error
    return [
        Timing(
            name,
            latency.median,
            latency.p10,
            latency.p90,
            1 / latency.median,
            compared[name].speedup,
            peaks[name],
            count_parameters(forms[name]),
        )
        for name in calls
        for latency in (compared[name].latency,)
    ]


def _peak(name: str, call: Callable[[], Tensor], device: torch.device | str) -> int | None:
    hidden = name.endswith("compiled") and torch.device(device).type == "cpu"
    return None if hidden else peak_of_call(call, device)


def _forms(restorer: Restorer, config: BenchmarkConfig) -> dict[str, Any]:
    forms: dict[str, Any] = {}
    if config.unmerged:
        if restorer.family.merged(restorer.config) == restorer.config:
            raise ValueError("these weights are merged already: there is no other form to time")
        forms[TRAINING] = restorer
    merged = restorer.merge()
    forms[MERGED] = merged
    if config.channels_last:
        forms[f"{MERGED}, channels last"] = restorer.merge().to(memory_format=torch.channels_last)
    if config.compile:
        forms[f"{MERGED}, compiled"] = torch.compile(merged)
    return forms


def _laid_out(picture: Tensor, name: str) -> Tensor:
    last = name.endswith("channels last")
    return picture.contiguous(memory_format=torch.channels_last) if last else picture


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        if count < 1:
            raise ValueError(f"--threads {count}: expected 1 or more")
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _network(config: BenchmarkConfig, family: RestorationFamily) -> tuple[Restorer, str]:
    """The network to time, and what it is called."""
    if bool(config.weights) == bool(config.variant):
        known = ", ".join(family.variants)
        raise ValueError(f"give either --weights or --variant, of which there are: {known}")
    if config.weights:
        if config.scale is not None:
            raise ValueError("--scale is for --variant; weights have their own")
        return open_restorer(family, config.weights), config.weights
    network = family.variant(config.variant)
    # Noise stands for all tasks of scale 1: it is the size that is timed.
    task = task_of(family, network, kind="denoise")
    if config.scale is not None:
        channels = task.channels if task is not None else 3
        task = Task("sr" if config.scale > 1 else "denoise", config.scale, channels)
        network = family.for_task(network, task)
    if task is None:
        raise ValueError(f"{config.variant} has neither a known scale nor known channels")
    restorer = Restorer(family.build(network), config=network, task=task, family=family).eval()
    return restorer, config.variant


def run_benchmark(config: BenchmarkConfig, family: RestorationFamily) -> int:
    """Print (and with ``output`` write) how long a network takes.

    Raises:
        FileNotFoundError: no such weights.
        ValueError: an option does not fit.
    """
    device = pick_device(config.device, precision=config.precision)
    restorer, name = _network(config, family)
    with _threads(config.threads):
        timings = measure_forms(restorer, config, device)
        threads = torch.get_num_threads()
    cpu = f"CPU {platform.processor() or platform.machine()}, {threads} threads"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    width, height = config.size
    told = (
        f"{family.package} {name}, x{restorer.scale}, result of {width} x {height}, "
        f"{config.precision}, {config.runs} runs on {where}, torch {torch.__version__}"
    )
    print(told)
    print(f"  {'form':24} {'ms':>9} {'p10':>9} {'p90':>9} {'1/s':>8} {'x':>6} {'peak MB':>9}")
    for t in timings:
        milliseconds = " ".join(f"{1000 * value:9.2f}" for value in (t.median, t.p10, t.p90))
        peak = "-" if t.peak_bytes is None else f"{t.peak_bytes / 1e6:.1f}"
        print(
            f"  {t.form:24} {milliseconds} {t.per_second:8.2f} {t.speedup:6.2f} {peak:>9}"
            f"  {t.parameters:,} parameters"
        )
    print("  (peak MB: tensors alive at once, beside weights and input)")
    if config.output is not None:
        plain = {
            "network": name,
            "task": restorer.task.to_dict(),
            "size": list(config.size),
            "precision": config.precision,
            "device": where,
            "torch": str(torch.__version__),
            "runs": config.runs,
            "forms": [asdict(t) for t in timings],
        }
        with atomic_path(config.output) as temporary:
            temporary.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    return 0
