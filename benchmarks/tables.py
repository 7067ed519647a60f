"""The committed measurements as Markdown: ``python benchmarks/tables.py``, computing nothing.

Each benchmark writes results/bench/<name>.json; one taken on a quiet machine is copied to
benchmarks/results/, and what this prints stands in benchmarks/README.md (a test compares them).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

RESULTS = Path(__file__).parent / "results"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of one Markdown table."""
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def binary_conv(data: dict[str, Any]) -> Iterator[str]:
    """Layers, then networks."""
    rates = data["binary_macs_per_second_of_one_thread"]
    paths = [name for name in rates if name != "limit"]
    rows = []
    for case in data["layers"]:
        ms, ratio = case["milliseconds"], case["times_faster_than_torch"]
        share = case["binary_macs_per_second"][paths[0]] / (rates["limit"] * case["threads"])
        rows.append(
            [
                f"{case['channels']} channels, {case['size']}x{case['size']}",
                f"{case['batch']}",
                f"{case['threads']}",
                f"{min(ms['torch contiguous'], ms['torch channels_last']):.2f}",
                f"{ms[paths[0]]:.2f}",
                *(f"{ratio[path]:.1f}x" for path in paths),
                f"{100 * share:.0f} %",
            ]
        )
    head = ["3x3 layer", "batch", "threads", "torch, ms", f"{paths[0]}, ms"]
    yield from table(head + [f"{path}: faster" for path in paths] + ["of the limit"], rows)
    yield ""
    yield f"The limit is {rates['limit']:.2e} binary multiply-accumulates a second and thread."
    yield ""
    rows = [
        [
            f"{case['batch']}",
            f"{case['threads']}",
            f"{case['milliseconds']['packed']:.1f}",
            *(
                f"{case['times_slower_than_packed'][name]:.1f}x"
                for name in ("float twin", "float twin, channels_last", "torchvision")
            ),
        ]
        for case in data["networks"]
    ]
    others = ["float twin", "twin, channels last", "torchvision"]
    head = ["ResNet-18, 224x224: batch", "threads", "packed, ms"]
    yield from table(head + [f"{name}: slower" for name in others], rows)


def imresize(data: dict[str, Any]) -> Iterator[str]:
    """Times of ours, ratios to the others."""
    rows = [
        [
            case["case"],
            f"{case['threads']}",
            f"{case['milliseconds']['papers_shared']:.1f}",
            f"{case['times_faster_than_basicsr']:.1f}x",
            f"{case['times_faster_than_interpolate']:.1f}x",
            f"{case['largest_difference_from_basicsr']:.1e}",
        ]
        for case in data["results"]
    ]
    head = ["pictures and scale", "threads", "ours, ms", "faster than basicsr"]
    yield from table([*head, "faster than F.interpolate", "difference from basicsr"], rows)


def adafm(data: dict[str, Any]) -> Iterator[str]:
    """Ratios of the two forms on one size; the times were taken beside other work."""
    rows = [
        [
            case["operation"],
            f"{case['batch']}",
            case["layout"],
            f"{case['threads']}",
            f"{case['times_faster']:.1f}x",
            f"{case['times_faster_p10']:.1f}x to {case['times_faster_p90']:.1f}x",
            f"{case['largest_difference']:.1e}",
        ]
        for case in data["results"]
    ]
    shape, p = f"{data['channels']} channels, {data['side']}x{data['side']}", data["patch_size"]
    yield f"{shape}, patches of {p}x{p}; load of the machine {data['machine']['load']:.1f}."
    yield ""
    head = ["operation", "batch", "layout", "threads", "matrix faster than Fourier"]
    yield from table([*head, "8 rounds of 10", "largest difference"], rows)


def resshift_family(data: dict[str, Any]) -> Iterator[str]:
    """One step against fifteen, the networks, the forms of one of them and where its time goes."""
    chains = data["chains"]
    rows = []
    for name in ("network", "picture"):
        case = chains[name]
        ms = case["milliseconds"]
        rows.append(
            [
                {"network": "the network alone", "picture": "from photo to picture"}[name],
                f"{case['threads']}",
                *(f"{ms[steps] / 1e3:.2f}" for steps in ("15 steps", "1 step")),
                f"{case['times_faster']['1 step']:.2f}x",
                f"{case['ratio_of_macs']:.2f}",
            ]
        )
    head = ["TAD-SR", "threads", "15 steps, s", "1 step, s", "faster"]
    yield from table([*head, "ratio of multiply-accumulates"], rows)
    yield ""
    rows = [
        [
            name,
            f"{row['parameters'] / 1e6:.2f}",
            f"{row['gmacs']:.2f}",
            f"{case['threads']}",
            f"{case['milliseconds'][name]:.0f}",
            f"{case['times_faster'][name]:.2f}x",
            f"{row['peak_bytes'] / 1e6:.0f}",
        ]
        for case in data["networks"]
        for name, row in case["networks"].items()
    ]
    head = ["one step", "parameters, M", "GMACs", "threads", "ms", "faster than ResShift"]
    yield from table([*head, "peak memory, MB"], rows)
    yield ""
    rows = [
        [
            name,
            f"{case['threads']}",
            f"{ms:.0f}",
            f"{case['times_faster'][name]:.2f}x",
            f"{case['times_faster_p10'][name]:.2f}x to {case['times_faster_p90'][name]:.2f}x",
            f"{case['relative_differences'][name]:.1e}",
        ]
        for case in data["forms"]
        for name, ms in case["milliseconds"].items()
    ]
    head = ["DiT-SR, one after the other", "threads", "ms", "faster than plain", "8 rounds of 10"]
    yield from table([*head, "largest difference"], rows)
    yield ""
    for case in data["forms"]:
        for name, parts in case["profiles"].items():
            shares = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in parts.items())
            yield f"Time of the form '{name}', threads: {case['threads']}: {shares}."
            yield ""


def lipt_attention(data: dict[str, Any]) -> Iterator[str]:
    """Ratios of the two forms; the times were taken beside other work."""
    rows = [
        [
            f"LIPT-{case['network']}",
            case["pass"],
            case["layout"],
            f"{case['times_faster']:.1f}x",
            f"{case['times_faster_p10']:.1f}x to {case['times_faster_p90']:.1f}x",
            f"{case['largest_difference']:.1e}",
        ]
        for case in data["results"]
    ]
    yield (
        f"One thread, features of {data['side']}x{data['side']}; load of the machine "
        f"{data['machine']['load']:.1f}."
    )
    yield ""
    head = ["attention of", "pass", "layout", "gathers faster", "8 rounds of 10"]
    yield from table([*head, "largest difference"], rows)


def lipt_networks(data: dict[str, Any]) -> Iterator[str]:
    """Networks beside each other, the two forms of one of them, and where the time goes."""
    case, (width, height) = data["networks"], data["size"]
    rows = [
        [
            name,
            f"{row['parameters'] / 1e6:.2f}",
            f"{row['gmacs']:.1f}",
            f"{case['milliseconds'][name] / 1e3:.2f}",
            f"{case['times_faster'][name]:.1f}x",
            f"{row['peak_bytes'] / 1e6:.0f}",
        ]
        for name, row in case["networks"].items()
    ]
    yield (
        f"One thread, x{data['scale']} to {width}x{height}; load of the machine "
        f"{data['machine']['load']:.1f}."
    )
    yield ""
    head = ["network", "parameters, M", "GMACs", "s", "faster than SwinIR-light"]
    yield from table([*head, "peak memory, MB"], rows)
    yield ""
    forms = data["forms"]
    faster = forms["times_faster"]["merged"]
    yield f"LIPT-Tiny merged is {faster:.1f} times as fast as the form of training."
    for name, parts in data["shares"].items():
        shares = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in parts.items())
        yield f"Time of {name}: {shares}."


def dukd_step(data: dict[str, Any]) -> Iterator[str]:
    """Updates, and what their forward passes add up to."""
    rows = [
        [
            case["teacher"],
            update,
            f"{case['milliseconds'][update]:.1f}",
            f"{added:.1f}",
            f"{case['measured_over_added_up'][update]:.2f}",
        ]
        for case in data["results"]
        for update, added in case["added_up"].items()
    ]
    yield (
        f"One thread, {data['batch']} patches of {data['patch']}x{data['patch']}, "
        f"x{data['scale']}, {data['cells']} cell and zoom-out; load of the machine "
        f"{data['machine']['load']:.1f}."
    )
    yield ""
    head = ["teacher", "update", "ms", "forward passes added up, ms", "ratio"]
    yield from table(head, rows)


def packed_linear(data: dict[str, Any]) -> Iterator[str]:
    """Milliseconds at batch 1, the bytes read and how long reading them takes."""
    rows = []
    for case in data["results"]:
        for name, found in case["candidates"].items():
            rows.append(
                [
                    f"{case['size']}",
                    name,
                    f"{found['milliseconds']:.3f}",
                    f"{found['bytes'] / 1e6:.2f}",
                    f"{found['bound_milliseconds']:.3f}",
                    f"{found['times_faster_than_float32']:.1f}x",
                ]
            )
    yield f"One thread, batch 1; load of the machine {data['machine']['load']:.1f}."
    yield ""
    head = ["inputs and outputs", "candidate", "ms", "MB read", "reading them, ms"]
    yield from table([*head, "faster than float32"], rows)


def genimage_loading(data: dict[str, Any]) -> Iterator[str]:
    """Pictures a second by number of workers."""
    rows = []
    for case in data["results"]:
        rate = case["pictures_per_second"]
        rows.append(
            [
                f"{case['workers']}",
                f"{rate['torchvision']:.0f}",
                f"{rate['genimage']:.0f}",
                f"{case['times_faster']:.2f}x",
                f"{case['times_faster_lowest']:.2f}x to {case['times_faster_highest']:.2f}x",
            ]
        )
    head = ["workers", "ImageFolder, pictures a second", "ours", "faster", "single rounds"]
    yield from table(head, rows)
    yield ""
    yield (
        f"{data['files']} JPEG files, {data['rounds']} rounds, {data['machine']['load']:.0f} other "
        f"processes waiting; pixels differ by {data['mean_difference_in_levels']:.3f} grey levels "
        f"on average, by {data['largest_difference_in_levels']:.1f} at most."
    )


def ipt_v2_attention(data: dict[str, Any]) -> Iterator[str]:
    """Ratios of the two forms, level by level."""
    rows = [
        [
            f"{case['level']}: {case['channels']} channels, {case['side']}x{case['side']}",
            case["operation"],
            case["layout"],
            f"{case['milliseconds']['reference']:.2f}",
            f"{case['milliseconds']['fused']:.2f}",
            f"{case['times_faster']:.1f}x",
            f"{case['largest_difference']:.1e}",
        ]
        for case in data["results"]
    ]
    head = ["level", "pass", "layout", "definition, ms", "fused, ms", "faster"]
    yield from table([*head, "largest difference"], rows)


def u_dit_speed(data: dict[str, Any]) -> Iterator[str]:
    """The two forms, DiT beside U-DiT, and cost against resolution."""
    rows = []
    for case in data["forms"]:
        ms, peak = case["milliseconds"], case["peak_bytes"]
        rows.append(
            [
                f"{case['network']}, batch {case['batch']}",
                f"{ms['as trained']:.0f}",
                f"{ms['fused']:.0f}",
                f"{case['times_faster']['fused']:.2f}x",
                f"{peak['as trained'] / 1e6:.0f}",
                f"{peak['fused'] / 1e6:.0f}",
                f"{case['largest_difference']:.1e}",
            ]
        )
    head = ["latents 32x32", "as trained, ms", "fused, ms", "faster", "peak as trained, MB"]
    yield from table([*head, "peak fused, MB", "largest difference"], rows)
    yield ""
    rows = []
    for case in data["beside_dit"]:
        ours, rival = case["network"], case["rival"]
        macs, ms, peak = case["gmacs"], case["milliseconds"], case["peak_bytes"]
        rows.append(
            [
                ours,
                rival,
                f"{macs[ours]:.2f} / {macs[rival]:.2f}",
                f"{macs[rival] / macs[ours]:.2f}x",
                f"{ms[ours]:.0f} / {ms[rival]:.0f}",
                f"{case['times_faster'][ours]:.2f}x",
                f"{peak[ours] / 1e6:.0f} / {peak[rival] / 1e6:.0f}",
            ]
        )
    head = ["U-DiT, fused", "DiT of diffusers", "GMACs", "fewer", "ms", "faster"]
    yield from table([*head, "peak, MB"], rows)
    yield ""
    rows = [
        [
            case["network"],
            f"{case['pixels']}",
            f"{case['gmacs']:.1f}",
            f"{case['milliseconds']:.0f}",
            f"{case['peak_bytes'] / 1e6:.0f}",
        ]
        for case in data["resolution"]
    ]
    yield from table(["network", "pixels a side", "GMACs", "ms", "peak, MB"], rows)


def cbq_peers(data: dict[str, Any]) -> Iterator[str]:
    """Perplexity and CPU minutes, method by method; CBQ's and its start's as its table has them."""
    names = {
        "rtn": "RTN",
        "gptq": "GPTQ",
        "awq": "AWQ",
        "lwc": "learned clipping (OmniQuant)",
        "autoround": "AutoRound",
        "cbq": "CBQ, preset best",
    }
    recorded: dict[str, Any] = {}
    for part in ("small_full", "small_ablation"):
        path = RESULTS.parents[1] / f"packages/cbq/results/{part}.json"
        recorded |= json.loads(path.read_text(encoding="utf-8"))["rows"]
    # As small_ablation names its rows; the first six blocks.
    ablation = {"w3a16": "w3_{}", "w4a8": "w4a8_{}"}
    rows = []
    for name, label in names.items():
        cells = []
        for bits, held in data["rows"].items():
            if bits in ablation:
                key = ablation[bits].format("best" if name == "cbq" else name)
            else:
                key = f"{name}_{bits}"
            if row := recorded.get(key):
                found = row["computed"]["cells"]
                values = found["ppl"]["value"], found["ppl"]["std"], found["cpu_minutes"]["value"]
            elif held.get(name):
                values = summed_up(list(held[name].values()))
            else:
                cells += ["not run", ""]
                continue
            perplexity, deviation, minutes = values
            cells.append(f"{perplexity:.2f}" + (f" ({deviation:.2f})" if deviation else ""))
            cells.append(f"{minutes:.1f}")
        rows.append([label, *cells])
    head = []
    for bits in data["rows"]:
        which = f"{bits.upper()}, six blocks" if bits in ablation else bits.upper()
        head += [f"{which}: perplexity", "CPU minutes"]
    yield from table(["method", *head], rows)


def summed_up(runs: list[dict[str, float]]) -> tuple[float, float | None, float]:
    """Mean perplexity, its deviation over seeds, and mean minutes."""
    found = [run["perplexity"] for run in runs]
    deviation = stdev(found) if len(found) > 1 else None
    return mean(found), deviation, mean(run["cpu_minutes"] for run in runs)


def compression_peers(data: dict[str, Any]) -> Iterator[str]:
    """Both sides of each method."""
    rows = [
        [
            method,
            f"{row['ours']:.2f}",
            f"{row['peer']:.2f}",
            f"{row['perplexity_ratio']:.3f}",
            f"{row['ours_seconds']:.0f}",
            f"{row['peer_seconds']:.0f}",
            f"{100 * row['equal_weights']:.1f} %",
        ]
        for method, row in data["rows"].items()
    ]
    yield f"{data['model']}; dense {data['dense']:.2f}."
    yield ""
    head = ["method", "ours, perplexity", "llm-compressor", "ratio", "ours, s", "llm-compressor, s"]
    yield from table([*head, "equal weights"], rows)


TABLES: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {
    "binary_conv": binary_conv,
    "imresize": imresize,
    "adafm": adafm,
    "resshift_family": resshift_family,
    "lipt_attention": lipt_attention,
    "lipt_networks": lipt_networks,
    "ipt_v2_attention": ipt_v2_attention,
    "u_dit_speed": u_dit_speed,
    "dukd_step": dukd_step,
    "packed_linear": packed_linear,
    "compression_peers": compression_peers,
    "cbq_peers": cbq_peers,
    "genimage_loading": genimage_loading,
}


def markdown() -> str:
    """All tables, each under its name and the machine it was measured on."""
    lines = []
    for name, render in TABLES.items():
        path = RESULTS / f"{name}.json"
        if not path.is_file():  # no measurement is kept, as the page says
            continue
        data = json.loads(path.read_text(encoding="utf-8"))
        machine = data["machine"]
        versions = ", ".join(f"{key} {value}" for key, value in machine["versions"].items())
        where = f"{machine['cpu']}, {machine['cores']} cores, {versions}, {machine['date'][:10]}"
        lines += [f"### {name}", "", f"{where}.", "", *render(data), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(), end="")
