"""What the recipes of reproduce.py compute."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cbq.pipeline import pick_precision, quantize
from cbq.reconstruct import autocast
from cbq.settings import Settings, preset
from cbq.sizes import host_parameters, linear_weights, lora_rounding_values, quantized_bytes
from papers_shared.language_models import (
    calibration_windows,
    find_blocks,
    load_language_model,
    tokenize,
    wikitext2,
)
from papers_shared.metrics.perplexity import perplexity
from papers_shared.quantization import Grid
from papers_shared.tables.recipe import Context, Measured

# Calibration: windows at random places of WikiText-2 valid; evaluation: the first windows of test.
SMALL: Mapping[str, Any] = {
    "model": "smollm2-135m",
    "segments": 16,
    "length": 512,
    "windows": 20,
    "blocks": 30,
    "seeds": 1,
}


def counts(context: Context, *, name: str) -> dict[str, Measured]:
    """Parameters, learned values and gigabytes of one host model."""
    sizes = {"w4": (4, -1), "w3": (3, -1), "w2": (2, -1), "w2g64": (2, 64)}
    row = {
        "params": host_parameters(name),
        "adaround": linear_weights(name),
        "lora": lora_rounding_values(name),
        **{column: quantized_bytes(name, *form) / 1e9 for column, form in sizes.items()},
    }
    return {column: Measured(value) for column, value in row.items()}


@functools.cache
def _tokens(model: str, split: str) -> torch.Tensor:
    return tokenize(load_language_model(model)[1], wikitext2(split))


@functools.cache
def _shared_grids(key: tuple[Any, ...]) -> dict[str, Grid]:
    """Start scales that all methods of a table share within one process."""
    return {}


def small_run(context: Context) -> dict[str, Measured]:
    """Quantize the first ``blocks`` blocks by a preset, once a seed; perplexity and CPU minutes.

    Start scales come from the float model's inputs, so methods of equal bits begin with the same;
    they are found before the clock starts. The other blocks stay float.
    """
    settings = dict(context.settings)
    rows = []
    for seed in range(context.seed, context.seed + settings["seeds"]):
        rows.append(_one(context, settings, seed))
        context.progress(len(rows), settings["seeds"], "seeds")
    out = {}
    for name in rows[0]:
        values = torch.tensor([row[name] for row in rows], dtype=torch.float64)
        std = float(values.std()) if len(rows) > 1 else None
        out[name] = Measured(float(values.mean()), std=std, n=len(rows))
    return out


def _one(context: Context, settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    model, _ = load_language_model(settings["model"])
    length, blocks = settings["length"], settings["blocks"]
    row = {}
    if "method" in settings:
        chosen = preset(settings["method"], **settings["changes"], seed=seed)
        segments = calibration_windows(
            _tokens(settings["model"], "valid"),
            count=settings["segments"],
            length=length,
            seed=seed,
        )
        grids = _start_grids(context, settings, chosen, segments)
        began = time.process_time()
        with first_blocks(model, blocks):
            result = quantize(
                model,
                segments,
                chosen,
                device=context.device,
                grids=grids,
                progress=context.progress,
            )
        row["cpu_minutes"] = (time.process_time() - began) / 60
        if chosen.steps:
            kept = [report["kept"] for report in result.reports]
            row["windows_kept"] = 100 * sum(kept) / len(kept)
    device = torch.device(context.device)
    test = _tokens(settings["model"], "test")
    with autocast(device, pick_precision("auto", device)):
        found = perplexity(model.to(device), test, window=length, windows=settings["windows"])
    row["ppl"] = found.value
    return row


def _start_grids(
    context: Context, settings: Mapping[str, Any], chosen: Settings, segments: Sequence[Tensor]
) -> dict[str, Grid]:
    """The start scales, found once a process for all rows that share them."""
    shared = ("bits", "group", "symmetric", "search", "rotate", "truncate", "scale_channels", "cfp")
    same = {name: getattr(chosen, name) for name in (*shared, "seed")}
    where = tuple(settings[name] for name in ("model", "segments", "length", "blocks"))
    grids = _shared_grids((*where, *same.values()))
    if not grids:
        model, _ = load_language_model(settings["model"])
        with first_blocks(model, settings["blocks"]):
            quantize(model, segments, preset("rtn", **same), device=context.device, grids=grids)
    return grids


@contextmanager
def first_blocks(model: Any, count: int) -> Iterator[None]:
    """A model of its first blocks alone, for as long as the context lasts; then whole again."""
    blocks = find_blocks(model)
    rest, depth = list(blocks[count:]), len(blocks)
    if rest:
        del blocks[count:]
        model.config.num_hidden_layers = count
    try:
        yield
    finally:
        blocks.extend(rest)
        model.config.num_hidden_layers = depth
