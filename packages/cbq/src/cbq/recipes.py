"""What the recipes of reproduce.py compute."""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

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
    tiny_llama,
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


# A Llama trained here on the bytes of WikiText-2 valid, so that the float model is truly float:
# SmolLM2-135M as it can be had here comes out of a 4-bit file.
SCRATCH: Mapping[str, Any] = {
    "model": "scratch",
    "segments": 32,
    "length": 128,
    "windows": 200,
    "blocks": 4,
    "seeds": 3,
    "hidden": 128,
    "intermediate": 352,
    "training": {"steps": 800, "batch": 16, "lr": 2e-3, "warmup": 50},
}


@functools.cache
def _tokens(model: str, split: Literal["valid", "test"]) -> torch.Tensor:
    if model == SCRATCH["model"]:
        return torch.frombuffer(bytearray(wikitext2(split).encode()), dtype=torch.uint8).long()
    return tokenize(load_language_model(model)[1], wikitext2(split))


@functools.cache
def train_from_scratch(
    text: Callable[[], Tensor],
    *,
    blocks: int,
    hidden: int,
    intermediate: int,
    length: int,
    steps: int,
    batch: int,
    lr: float,
    warmup: int,
) -> Any:
    """A Llama over bytes, trained by AdamW with a linear warm-up and a cosine; float32.

    Args:
        text: gives the token ids (n,) to train on.
        blocks, hidden, intermediate: its size; 4 heads that share 2 keys and values.
        length: tokens a window.
        steps, batch, lr, warmup: updates, windows an update, largest learning rate, updates to it.
    """
    tokens = text()
    model = tiny_llama(
        layers=blocks, hidden=hidden, intermediate=intermediate, vocabulary=256
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1, betas=(0.9, 0.95))
    draw = torch.Generator().manual_seed(0)
    for step in range(steps):
        share = min(1.0, (step + 1) / warmup) * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.param_groups[0]["lr"] = lr * share
        starts = torch.randint(len(tokens) - length, (batch,), generator=draw)
        windows = torch.stack([tokens[i : i + length] for i in starts.tolist()])
        model(windows, labels=windows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def _model(settings: Mapping[str, Any]) -> Any:
    """The float model of a table, a copy that may be changed."""
    if settings["model"] != SCRATCH["model"]:
        return load_language_model(settings["model"])[0]
    shape = {name: settings[name] for name in ("blocks", "hidden", "intermediate", "length")}
    return copy.deepcopy(train_from_scratch(_scratch_text, **shape, **settings["training"]))


def _scratch_text() -> Tensor:
    return _tokens(SCRATCH["model"], "valid")


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
    model = _model(settings)
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
        model = _model(settings)
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
