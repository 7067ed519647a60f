"""What an update of DUKD costs beside what the forward passes add up to; on a CPU, one thread.

``python benchmarks/dukd_step.py`` prints a table and writes results/bench/dukd_step.json. T and S
are a forward pass of teacher and student on the batch, a backward pass counts as two, k are the
cells, z = 1 for zoom-out. An update should cost: scratch 3 S, logits KD T + 3 S, DUKD
(1 + k + z / s^2)(T + 3 S); the released code, which also differentiates the teacher,
(1 + k + z / s^2)(3 T + 3 S); with the teacher's answers kept (1 + k + z / s^2) 3 S. All take turns
within one run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dukd.distill import DUKD, Distiller, LogitsKD
from dukd.methods import METHODS
from dukd.model import build
from dukd.teachers import CachedTeacher
from dukd.upcycling import InvertibleTransforms, zoom_in, zoom_out
from papers_shared import networks
from papers_shared.complexity import compare_latency
from papers_shared.tables.benchmark import save_benchmark

SCALE, PATCH, BATCH, CELLS = 2, 32, 8, 1
ROUNDS = 9
STUDENT = {"arch": "EDSR", "upscale": SCALE, "num_feat": 16, "num_block": 4}
TEACHERS: dict[str, Callable[[], nn.Module]] = {
    "RLFN": lambda: networks.build("rlfn_x2"),
    "EDSR-baseline": lambda: build(
        {"arch": "EDSR", "upscale": SCALE, "num_feat": 64, "num_block": 16}, implementation="own"
    ),
}
MORE = 1 + CELLS + 1 / SCALE**2  # inputs of an update, in batches


def released(teacher: nn.Module, student: nn.Module, lr: Tensor, hr: Tensor) -> Tensor:
    """The same terms as the released code computes them: the teacher is differentiated too."""
    out = student(lr)
    (5 * F.l1_loss(out, hr) + F.l1_loss(out, teacher(lr))).backward()
    cells = zoom_in(hr, [0], scale=SCALE)
    transforms = InvertibleTransforms.of(len(cells), {"i": [0], "t": [1]})
    made = transforms.undo(student(transforms.apply(cells)))
    reduced = zoom_out(lr, scale=SCALE)
    small = student(reduced)
    return (
        F.l1_loss(teacher(cells), made)
        + 5 * F.l1_loss(small, lr)
        + F.l1_loss(small, teacher(reduced))
    )


def updates(teacher: nn.Module) -> dict[str, Callable[[], Any]]:
    """Name to a function that does one update."""
    student = build(STUDENT, implementation="own")
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-6)
    generator = torch.Generator().manual_seed(0)
    lr = torch.rand(BATCH, 3, PATCH, PATCH, generator=generator)
    hr = torch.rand(BATCH, 3, SCALE * PATCH, SCALE * PATCH, generator=generator)

    def forward(network: nn.Module) -> Callable[[], Any]:
        def run() -> None:
            with torch.no_grad():
                network(lr)

        return run

    def step(distiller: Distiller) -> Callable[[], Any]:
        def run() -> None:
            optimizer.zero_grad()
            distiller.loss(lr, hr).backward()
            optimizer.step()

        return run

    def naive() -> None:
        teacher.requires_grad_(True)
        optimizer.zero_grad()
        released(teacher, student, lr, hr).backward()
        optimizer.step()
        teacher.requires_grad_(False).zero_grad()

    kept = CachedTeacher(teacher, capacity=BATCH * (2 + SCALE**2))
    return {
        "teacher forward": forward(teacher),
        "student forward": forward(student),
        "scratch": step(METHODS["scratch"](None, student)),
        "logits KD": step(LogitsKD(teacher, student)),
        "DUKD": step(DUKD(teacher, student, cells=CELLS)),
        "DUKD, answers kept": step(DUKD(kept, student, cells=CELLS)),
        "DUKD as released": naive,
    }


def arithmetic(t: float, s: float) -> dict[str, float]:
    """What the updates should cost, from the cost of both forward passes."""
    return {
        "scratch": 3 * s,
        "logits KD": t + 3 * s,
        "DUKD": MORE * (t + 3 * s),
        "DUKD, answers kept": MORE * 3 * s,
        "DUKD as released": MORE * (3 * t + 3 * s),
    }


def measure(name: str, rounds: int = ROUNDS) -> dict[str, Any]:
    """Median milliseconds of an update of each kind, and measured over added up."""
    # Warmed up often enough that all cells are among the answers that are kept.
    compared = compare_latency(
        updates(TEACHERS[name]().eval()), baseline="DUKD", warmup=8, rounds=rounds
    )
    ms = {key: 1e3 * value.latency.median for key, value in compared.items()}
    added = arithmetic(ms["teacher forward"], ms["student forward"])
    return {
        "teacher": name,
        "milliseconds": ms,
        "added_up": added,
        "measured_over_added_up": {key: ms[key] / value for key, value in added.items()},
        "released_over_ours": 1 / compared["DUKD as released"].speedup,
        "rounds": rounds,
    }


def main() -> int:
    """Measure, print, and write results/bench/dukd_step.json."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    results = []
    print(f"{'teacher':14} {'update':20} {'ms':>8} {'added up':>9} {'ratio':>6}")
    try:
        for name in TEACHERS:
            results.append(measure(name))
            for key, added in results[-1]["added_up"].items():
                ms = results[-1]["milliseconds"][key]
                print(f"{name:14} {key:20} {ms:8.1f} {added:9.1f} {ms / added:6.2f}", flush=True)
    finally:
        torch.set_num_threads(before)
    sizes = {"scale": SCALE, "patch": PATCH, "batch": BATCH, "cells": CELLS, "student": STUDENT}
    save_benchmark("dukd_step", {**sizes, "results": results}, distributions=["torch"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
