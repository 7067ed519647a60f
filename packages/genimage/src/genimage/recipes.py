"""What the tables' recipes compute (see papers_shared.tables.recipe)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genimage.degradations import jpeg
from genimage.detectors import Detector, preset_of
from genimage.model import VARIANTS, build
from genimage.parity import flops
from genimage.pictures import from_tensor, to_tensor
from genimage.small_photos import GENERATORS
from genimage.small_runs import SEEDS, Run, benchmark, run
from genimage.small_set import mean_spectrum
from papers_shared.data.cifar10 import load_cifar10
from papers_shared.tables import schema
from papers_shared.tables.recipe import Context, Measured
from papers_shared.workspace import package_file

# --- arithmetic on the reported numbers ---------------------------------------------------------


@cache
def reported() -> schema.Paper:
    """This package's reported.yaml."""
    return schema.load(package_file("genimage", "reported.yaml"))


def reported_row(table: str, row: str) -> dict[str, float]:
    """The reported cells of a row but its printed mean, the first number of each."""
    cells = reported().tables[table].rows[row].cells
    return {name: c.reported[0].value for name, c in cells.items() if name != "avg"}


def row_mean(context: Context, *, table: str, row: str) -> dict[str, Measured]:
    """The mean of a reported row's cells."""
    values = list(reported_row(table, row).values())
    return {"avg": Measured(statistics.fmean(values), n=len(values))}


def column_means(context: Context, *, table: str) -> dict[str, Measured]:
    """The mean of each reported column, and of those means."""
    rows = [reported_row(table, row) for row in reported().tables[table].rows]
    means = {name: statistics.fmean(r[name] for r in rows) for name in rows[0]}
    means["avg"] = statistics.fmean(means.values())
    return {name: Measured(value, n=len(rows)) for name, value in means.items()}


# --- counts -------------------------------------------------------------------------------------


def complexity(context: Context, *, variant: str, size: int) -> dict[str, Measured]:
    """Parameters, state entries and FLOPs for one picture; nothing is computed."""
    network = build(VARIANTS[variant]).eval()
    return {
        "params": Measured(sum(p.numel() for p in network.parameters())),
        "entries": Measured(len(network.state_dict())),
        "flops": Measured(flops(network, (1, 3, size, size))),
    }


def throughput(context: Context, *, variant: str) -> dict[str, Measured]:
    """Pictures a second, batch 8, median of three, on one thread."""
    preset = preset_of(variant)
    detector = Detector(preset).eval().to(context.device)
    generator = torch.Generator().manual_seed(context.seed)
    side = preset.geometry.crop
    images = torch.randint(256, (8, 3, side, side), generator=generator, dtype=torch.uint8)
    images = images.to(context.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = []
    try:
        with torch.inference_mode():
            for _ in range(4):
                start = time.perf_counter()
                detector(images).sum().item()
                times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return {"pictures": Measured(8 / statistics.median(times[1:]), n=3)}


# --- the small benchmark ------------------------------------------------------------------------


def over_seeds(values: Sequence[float]) -> Measured:
    """Mean and sample standard deviation."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return Measured(statistics.fmean(values), std=std, n=len(values))


def runs(context: Context, detector: str, generators: Sequence[str]) -> dict[str, list[Run]]:
    """Generator -> its trainings, one a seed."""
    index = benchmark(context)
    out: dict[str, list[Run]] = {}
    total = len(generators) * SEEDS
    for name in generators:
        out[name] = []
        for seed in range(context.seed, context.seed + SEEDS):
            out[name].append(run(index, detector, name, seed))
            context.progress(sum(map(len, out.values())), total, f"trainings of {detector}")
    return out


def small_row(
    context: Context, *, detector: str, generator: str, matched: bool
) -> dict[str, Measured]:
    """Trained on one generator, tested on all: accuracies, and both classes of the own."""
    found = runs(context, detector, [generator])[generator]
    tables = [r.matched if matched else r.raw for r in found]
    row = {name: over_seeds([t[name]["accuracy"] for t in tables]) for name in GENERATORS}
    others = [n for n in GENERATORS if n != generator]
    row["others"] = over_seeds([statistics.fmean(t[n]["accuracy"] for n in others) for t in tables])
    for column in ("real", "generated"):
        row[column] = over_seeds([t[generator][column] for t in tables])
    return row


def small_from_one(context: Context, *, detector: str, generator: str) -> dict[str, Measured]:
    """Trained on one generator, tested on all, and the mean of those."""
    found = runs(context, detector, [generator])[generator]
    row = {n: over_seeds([r.raw[n]["accuracy"] for r in found]) for n in GENERATORS}
    means = [statistics.fmean(r.raw[n]["accuracy"] for n in GENERATORS) for r in found]
    return {**row, "avg": over_seeds(means)}


def _by_seed(found: dict[str, list[Run]], value: Callable[[str, Run], float]) -> list[float]:
    """For each seed the mean of ``value(training generator, run)`` over training generators."""
    return [
        statistics.fmean(value(name, rows[seed]) for name, rows in found.items())
        for seed in range(len(next(iter(found.values()))))
    ]


def small_means(context: Context, *, detector: str) -> dict[str, Measured]:
    """Means over the training generators, of each tested one, of the own and of the others."""
    found = runs(context, detector, list(GENERATORS))

    def on(tested: str) -> Callable[[str, Run], float]:
        def accuracy(_: str, r: Run) -> float:
            return r.raw[tested]["accuracy"]

        return accuracy

    row = {n: over_seeds(_by_seed(found, on(n))) for n in GENERATORS}

    def others(own: str, r: Run) -> float:
        return statistics.fmean(r.raw[n]["accuracy"] for n in GENERATORS if n != own)

    def everything(_: str, r: Run) -> float:
        return statistics.fmean(r.raw[n]["accuracy"] for n in GENERATORS)

    row["avg"] = over_seeds(_by_seed(found, everything))
    row["own"] = over_seeds(_by_seed(found, lambda own, r: r.raw[own]["accuracy"]))
    row["others"] = over_seeds(_by_seed(found, others))
    return row


def small_degraded(context: Context, *, detector: str) -> dict[str, Measured]:
    """Accuracy on the own generator's degraded pictures, mean over the training generators."""
    found = runs(context, detector, list(GENERATORS))
    names = list(next(iter(found.values()))[0].degraded)

    def after(name: str) -> Callable[[str, Run], float]:
        def accuracy(_: str, r: Run) -> float:
            return r.degraded[name]

        return accuracy

    row = {n: over_seeds(_by_seed(found, after(n))) for n in names}
    row["clean"] = over_seeds(_by_seed(found, lambda own, r: r.raw[own]["accuracy"]))
    row["avg"] = over_seeds(_by_seed(found, lambda _, r: statistics.fmean(r.degraded.values())))
    return row


# --- formats and traces, on CIFAR-10 ------------------------------------------------------------


def _cifar(context: Context, count: int) -> Tensor:
    """The first test pictures, uint8 (count, 3, 32, 32)."""
    path = context.assets["cifar10_test"].path
    return load_cifar10("test", path=path, download=False).images[:count]


def _compressed(images: Tensor, quality: int) -> Tensor:
    return torch.stack([to_tensor(jpeg(from_tensor(image), quality)) for image in images])


def high_pass(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> a picture less its 3x3 mean, times 8, in units of white."""
    x = images.float() / 255
    mean = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return 8 * (x - mean)


def format_bias(context: Context, *, quality: int) -> dict[str, Measured]:
    """Train "JPEG or not" on real pictures; test so, and with both classes compressed."""
    epochs, lr = context.settings["epochs"], context.settings["lr"]
    n, m = context.settings["train"], context.settings["test"]  # of each class
    images = _cifar(context, 2 * (n + m))
    packed = _compressed(images, quality)
    train = torch.cat([packed[:n], images[n : 2 * n]])
    labels = torch.arange(2 * n).ge(n).long()  # 1: never compressed, as GenImage's generated ones
    tests = {
        "biased": torch.cat([packed[2 * n : 2 * n + m], images[2 * n + m :]]),
        "equalised": packed[2 * n :],
    }
    truth = torch.arange(2 * m).ge(m).long()
    found: dict[str, list[float]] = {name: [] for name in tests}
    seeds = context.settings["seeds"]
    for seed in range(context.seed, context.seed + seeds):
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build(VARIANTS["mini_resnet"])
        optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
        for _ in range(epochs):
            for batch in torch.randperm(2 * n, generator=generator).split(50):
                loss = F.cross_entropy(network(high_pass(train[batch])), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        network.eval()
        with torch.inference_mode():
            for name, test in tests.items():
                called = torch.cat([network(high_pass(b)).argmax(1) for b in test.split(250)])
                found[name].append(100 * (called == truth).float().mean().item())
        context.progress(len(found["biased"]), seeds, "trainings")
    return {name: over_seeds(values) for name, values in found.items()}


def grid_traces(context: Context, *, way: str) -> dict[str, Measured]:
    """Peaks beside the Nyquist frequencies of pictures made smaller and larger again."""
    images = _cifar(context, 1000).float() / 255
    if way != "real":
        small = F.avg_pool2d(images, 2)
        corners = None if way == "nearest" else False
        images = F.interpolate(small, scale_factor=2, mode=way, align_corners=corners)
    levels = images.clamp(0, 1).mul(255).round().to(torch.uint8)
    spectrum = mean_spectrum([from_tensor(image) for image in levels])
    middle, median = spectrum.shape[0] // 2, float(np.median(spectrum))
    # Row or column 0 is the Nyquist frequency itself, where doubling leaves a zero: the copies of
    # the low frequencies lie beside it.
    low, high = slice(middle + 1, middle + 5), slice(1, 3)
    return {
        "horizontal": Measured(float(spectrum[low, high].mean()) - median, n=len(levels)),
        "vertical": Measured(float(spectrum[high, low].mean()) - median, n=len(levels)),
    }
