"""Packed binary convolutions beside torch's float32 ones, and whole networks; on a CPU.

``python benchmarks/binary_conv.py [--quick]`` prints tables and writes
results/bench/binary_conv.json. All candidates take turns within one run; figures are medians.

Layers are the 3x3 convolutions of ResNet-18 at 224x224. Ours take float32 activations, so packing
them is included; torch's conv2d is timed on contiguous and channels_last tensors (input and
weight) and the faster one is the rival. Networks: AdaBin's ImageNet ResNet-18 packed, its float
twin (each binary convolution replaced by nn.Conv2d, all else kept), the twin in channels_last,
torchvision's ResNet-18, and the dense AdaBin network that only simulates bits.

The machine's popcount limit is a loop of XOR, popcount and add on registers alone; the share of it
that a layer reaches counts C * O * k * k * OH * OW binary multiply-accumulates and all of the time.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adabin import VARIANTS, build
from adabin.packed import pack
from papers_shared.complexity import compare_latency
from papers_shared.kernels import binary_conv2d_cpu, pack_weight
from papers_shared.kernels.binary_conv2d import prepare
from papers_shared.tables.benchmark import save_benchmark

LAYERS = {64: 56, 128: 28, 256: 14, 512: 7}  # channels in and out -> height and width
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def layer(channels: int, batch: int, threads: int, *, seconds: float) -> dict[str, Any]:
    """Milliseconds of each candidate on one layer, and torch's time over ours."""
    generator = torch.Generator().manual_seed(0)
    size = LAYERS[channels]
    x = torch.randn(batch, channels, size, size, generator=generator)
    weight = torch.randn(channels, channels, 3, 3, generator=generator)
    functions: dict[str, Callable[[], Tensor]] = {}
    for name, layout in FORMATS.items():
        x_in, w_in = (t.contiguous(memory_format=layout) for t in (x, weight))
        functions[f"torch {name}"] = partial(F.conv2d, x_in, w_in, padding=1)
        operands = prepare(
            pack_weight(weight), x,
            threshold=0.1, activation_scale=0.7, activation_center=0.1, padding=1,
        )  # fmt: skip
        paths = binary_conv2d_cpu.paths()
        for path in paths if name == "contiguous" else paths[:1]:
            convolution = binary_conv2d_cpu.CpuConvolution(operands, path=path)
            functions[path if name == "contiguous" else f"{path} {name}"] = partial(
                convolution, x_in
            )
    ms = timed(functions, seconds=seconds)
    rival = min(ms[name] for name in ms if name.startswith("torch"))
    macs = batch * channels * channels * 9 * size * size
    ours = {name: value for name, value in ms.items() if not name.startswith("torch")}
    return {
        "channels": channels,
        "size": size,
        "batch": batch,
        "threads": threads,
        "milliseconds": ms,
        "times_faster_than_torch": {name: rival / value for name, value in ours.items()},
        "binary_macs_per_second": {name: 1e3 * macs / value for name, value in ours.items()},
    }


def timed(functions: dict[str, Callable[[], Tensor]], *, seconds: float) -> dict[str, float]:
    """Median milliseconds of each function, in turns, over as many rounds as the time allows."""
    once = compare_latency(functions, baseline=next(iter(functions)), warmup=0, rounds=1)
    round_time = sum(result.latency.median for result in once.values())
    rounds = int(min(101, max(3, seconds / round_time)))
    result = compare_latency(functions, baseline=next(iter(functions)), warmup=0, rounds=rounds)
    return {name: 1e3 * value.latency.median for name, value in result.items()}


def networks(batch: int, threads: int, *, seconds: float) -> dict[str, Any]:
    """Milliseconds of ImageNet ResNet-18, packed and otherwise, and the ratios to packed."""
    import torchvision

    torch.manual_seed(0)
    config = VARIANTS["imagenet_resnet18"]
    dense = build(config).eval()
    twin = build(replace(config, a_bit=32, w_bit=32)).eval()
    last = copy.deepcopy(twin).to(memory_format=torch.channels_last)
    x = torch.randn(batch, 3, 224, 224)
    x_last = x.contiguous(memory_format=torch.channels_last)
    functions: dict[str, Callable[[], Tensor]] = {
        "packed": partial(pack(dense), x),
        "float twin": partial(twin, x),
        "float twin, channels_last": partial(last, x_last),
        "torchvision": partial(torchvision.models.resnet18().eval(), x),
    }
    if batch == 1:
        functions["simulated bits"] = partial(dense, x)
    ms = timed(functions, seconds=seconds)
    ratios = {name: ms[name] / ms["packed"] for name in ms if name != "packed"}
    return {
        "batch": batch,
        "threads": threads,
        "milliseconds": ms,
        "times_slower_than_packed": ratios,
    }


def limits() -> dict[str, float]:
    """Bits a second of one thread: in registers (``limit``), and each path's innermost loop."""
    module, paths = binary_conv2d_cpu.extension(), binary_conv2d_cpu.paths()
    tiles = {path: max(module.tile_rate(path, 36, 2000) for _ in range(9)) for path in paths}
    registers = max(module.popcount_rate(1_000_000) for _ in range(9))
    return {"limit": registers or tiles[paths[0]], **tiles}


def print_layer(result: dict[str, Any], limit: float) -> None:
    """One line of the first table."""
    ms, ratio = result["milliseconds"], result["times_faster_than_torch"]
    torch_ms = [ms[f"torch {name}"] for name in FORMATS]
    best = next(iter(ratio))
    share = result["binary_macs_per_second"][best] / (limit * result["threads"])
    shape = f"{result['channels']} ch {result['size']}x{result['size']}"
    print(
        f"{shape:13} {result['batch']:5} {result['threads']:7}  "
        f"{torch_ms[0]:9.3f} {torch_ms[1]:9.3f} {ms[best]:9.3f}   "
        + " ".join(f"{name} {value:.1f}x" for name, value in ratio.items())
        + f"   {100 * share:.0f} %",
        flush=True,
    )


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write results/bench/binary_conv.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer settings, under 40 seconds")
    quick = parser.parse_args(argv).quick
    before, cores = torch.get_num_threads(), os.cpu_count() or 1
    try:
        rates = limits()
    except binary_conv2d_cpu.ExtensionError as error:
        raise SystemExit(f"error: {error}") from None
    limit = rates["limit"]
    print("one thread, binary multiply-accumulates a second:")
    print("  " + ", ".join(f"{name} {value / 1e9:.0f}e9" for name, value in rates.items()))
    print("\nmilliseconds; times faster than torch's better one; share of the limit")
    print(f"{'layer':13} batch threads  {'torch':>9} {'ch.last':>9} {'ours':>9}")
    threads_tried = sorted({1} if quick else {1, cores})
    layers, whole = [], []
    for threads in threads_tried:
        torch.set_num_threads(threads)
        for channels in (256, 512) if quick else LAYERS:
            for batch in (1, 64):
                seconds = 1.0 if quick or batch == 1 else 4.0
                layers.append(layer(channels, batch, threads, seconds=seconds))
                print_layer(layers[-1], limit)
    print("\nImageNet ResNet-18, 224x224: milliseconds (times slower than packed)")
    for threads in threads_tried:
        torch.set_num_threads(threads)
        for batch in (1,) if quick else (1, 64):
            whole.append(networks(batch, threads, seconds=3.0))
            ms, ratio = whole[-1]["milliseconds"], whole[-1]["times_slower_than_packed"]
            others = ", ".join(f"{n} {ms[n]:.1f} ({ratio[n]:.2f}x)" for n in ratio)
            print(f"batch {batch}, threads {threads}: packed {ms['packed']:.2f}, {others}")
    torch.set_num_threads(before)
    results = {
        "quick": quick,
        "binary_macs_per_second_of_one_thread": rates,
        "layers": layers,
        "networks": whole,
    }
    save_benchmark("binary_conv", results, distributions=["torch", "torchvision"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
