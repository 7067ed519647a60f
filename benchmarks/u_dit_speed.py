"""U-DiT on one CPU thread: its forms, DiT beside it, and cost against resolution.

``python benchmarks/u_dit_speed.py [--quick]`` prints tables and writes
results/bench/u_dit_speed.json.
Candidates take turns within one run; a time is a median, a ratio the median of the ratios within a
round. Weights are random.

Forms: a forward of latents 4x32x32, batch 8, as the network is trained (branches apart, attention
as products and a softmax) and as ``u_dit.fuse`` makes it (branches and shortcuts merged, channels
last) with torch's fused attention.

DiT: diffusers' ``DiTTransformer2DModel`` in the sizes S/2, B/2 and XL/2, batch 1: operations,
time, peak memory beyond weights and input.

Resolution: pictures of 256, 512 and 1024 pixels, batch 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from papers_shared.complexity import count_parameters, peak_memory
from papers_shared.tables.benchmark import save_benchmark, timed
from u_dit import DIT_VARIANTS, VARIANTS, build, fuse
from u_dit.counting import paper_macs

PAIRS = {"U-DiT-S": "DiT-S/2", "U-DiT-B": "DiT-B/2", "U-DiT-B, too": "DiT-XL/2"}


def inputs(batch: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, steps and labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 4, side, side, generator=generator)
    return x, torch.full((batch,), 500), torch.arange(batch)


def lively(variant: str) -> nn.Module:
    """A network whose output is not zero, in eval mode."""
    torch.manual_seed(0)
    model = build(VARIANTS[variant]).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "adaLN" in name or name.startswith("final"):
            parameter.normal_(std=0.02)
    return model


def plainly(model: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
    """A forward with attention as products and a softmax."""
    with sdpa_kernel(SDPBackend.MATH):
        return model(*given)


def dit_of_diffusers(name: str, side: int) -> Callable[[tuple[Tensor, ...]], Any]:
    """diffusers' DiT of a size, random weights."""
    from diffusers import DiTTransformer2DModel

    config = DIT_VARIANTS[name]
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.hidden_size // config.num_heads,
        in_channels=4,
        out_channels=8,
        num_layers=config.depth,
        sample_size=side,
        patch_size=config.patch_size,
        num_embeds_ada_norm=1000,
    )
    model = model.eval().requires_grad_(False)
    return lambda given: model(given[0], timestep=given[1], class_labels=given[2]).sample


def forms(variant: str, *, batch: int, rounds: int) -> dict[str, Any]:
    """The training form with plain attention against the fused one."""
    model, given = lively(variant), inputs(batch, 32)
    fused = fuse(model)
    with torch.inference_mode():
        wanted, found = plainly(model, given), fused(*given)
    difference = ((found - wanted).abs().max() / wanted.abs().max()).item()
    del wanted, found
    functions = {"as trained": partial(plainly, model, given), "fused": partial(fused, *given)}
    with torch.inference_mode():
        measured = timed(functions, baseline="as trained", rounds=rounds)
        peaks = {name: peak_memory(function).bytes for name, function in functions.items()}
    ms, ratio = measured["milliseconds"], measured["times_faster"]["fused"]
    print(
        f"{variant}, batch {batch}: as trained {ms['as trained']:.0f} ms, fused "
        f"{ms['fused']:.0f} ms, {ratio:.2f}x; difference {difference:.1e}",
        flush=True,
    )
    row = {"network": variant, "batch": batch, "side": 32, "largest_difference": difference}
    return {**row, **measured, "peak_bytes": peaks}


def beside_dit(*, rounds: int) -> list[dict[str, Any]]:
    """U-DiT against the DiT that the paper sets beside it."""
    given, rows = inputs(1, 32), []
    for pair, rival in PAIRS.items():
        name = pair.partition(",")[0]
        ours, theirs = fuse(lively(name)), dit_of_diffusers(rival, 32)
        functions = {name: partial(ours, *given), rival: partial(theirs, given)}
        macs = {
            name: paper_macs(VARIANTS[name], 32) / 1e9,
            rival: paper_macs(DIT_VARIANTS[rival], 32) / 1e9,
        }
        with torch.inference_mode():
            measured = timed(functions, baseline=rival, rounds=rounds)
            peaks = {key: peak_memory(function).bytes for key, function in functions.items()}
        row = {"network": name, "rival": rival, "gmacs": macs, **measured, "peak_bytes": peaks}
        row["parameters"] = count_parameters(ours)
        rows.append(row)
        ms = measured["milliseconds"]
        print(
            f"{name} {macs[name]:.2f} GMACs {ms[name]:.0f} ms, {rival} {macs[rival]:.2f} GMACs "
            f"{ms[rival]:.0f} ms: {macs[rival] / macs[name]:.2f} times the operations, "
            f"{measured['times_faster'][name]:.2f} times the time",
            flush=True,
        )
    return rows


def against_resolution(variant: str, pixels: tuple[int, ...]) -> list[dict[str, Any]]:
    """Operations, time and memory of one picture."""
    model, rows = fuse(lively(variant)), []
    for side in (p // 8 for p in pixels):
        function = partial(model, *inputs(1, side))
        with torch.inference_mode():
            measured = timed({variant: function}, baseline=variant, rounds=3)
            peak = peak_memory(function).bytes
        row = {
            "network": variant,
            "pixels": 8 * side,
            "gmacs": paper_macs(VARIANTS[variant], side) / 1e9,
            "milliseconds": measured["milliseconds"][variant],
            "peak_bytes": peak,
        }
        rows.append(row)
        print(
            f"{variant} at {8 * side}: {row['gmacs']:.1f} GMACs, {row['milliseconds']:.0f} ms, "
            f"{peak / 1e6:.0f} MB",
            flush=True,
        )
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="U-DiT-S only, two rounds")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    rounds = 2 if quick else 5
    data: dict[str, Any] = {
        "forms": [
            forms(name, batch=8, rounds=rounds)
            for name in (["U-DiT-S"] if quick else ["U-DiT-S", "U-DiT-B"])
        ]
    }
    if not quick:
        data["beside_dit"] = beside_dit(rounds=rounds)
        data["resolution"] = against_resolution("U-DiT-S", (256, 512, 1024))
    save_benchmark("u_dit_speed", data, distributions=("torch", "diffusers"))


if __name__ == "__main__":
    main()
