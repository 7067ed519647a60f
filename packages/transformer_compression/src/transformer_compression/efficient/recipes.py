"""What the rows of the table ``mixers`` compute: training from scratch, latency, memory."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch

from papers_shared.complexity import count_parameters, measure_latency, peak_memory
from papers_shared.language_models import wikitext2
from papers_shared.tables.recipe import Context, Measured
from transformer_compression.efficient.byte_model import (
    MixerModel,
    bits_per_byte,
    train_bytes,
)
from transformer_compression.efficient.mixers import build_mixer, state_bytes


@torch.inference_mode()
def costs(name: str, *, width: int, heads: int, lengths: list[int]) -> dict[str, Measured]:
    """Milliseconds and peak megabytes of a whole pass, and of one decoded token, by length.

    One mixer alone, one sequence, float32, one thread.
    """
    found: dict[str, Measured] = {}
    torch.manual_seed(0)
    mixer = build_mixer(name, width=width, heads=heads).eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for length in lengths:
            x = torch.randn(1, length, width)
            run = partial(mixer, x)
            found[f"forward_{length}"] = Measured(
                1e3 * measure_latency(run, warmup=1, repeats=3).median, n=3
            )
            found[f"memory_{length}"] = Measured(peak_memory(run).bytes / 1e6)
            state = filled_state(mixer, x)
            token = x[:, :1]
            step = partial(mixer.step, token, state)
            found[f"step_{length}"] = Measured(
                1e3 * measure_latency(step, warmup=2, repeats=9).median, n=9
            )
            found[f"state_{length}"] = Measured(state_bytes(state) / 1e3)
    finally:
        torch.set_num_threads(threads)
    return found


def filled_state(mixer: Any, x: torch.Tensor) -> Any:
    """The state after a sequence.

    Exact and local attention take their keys and values at once; a state of one size is the same
    size after 16 tokens as after thousands, so the others take the first 16.
    """
    if hasattr(mixer, "qkv") and not type(mixer).__name__.startswith("Linear"):
        _, k, v = mixer.project(x)
        if hasattr(mixer, "window"):
            most = min(x.shape[1], mixer.window + mixer.global_tokens + 1)
            k, v = k[:, :, -most:].contiguous(), v[:, :, -most:].contiguous()
        return k, v
    state = None
    for t in range(16):
        _, state = mixer.step(x[:, t : t + 1], state)
    return state


def mixer_row(context: Context) -> dict[str, Measured]:
    """Bits per byte of a small byte model, several seeds, and what its mixer costs."""
    settings = context.settings
    train, test = (wikitext2(split).encode() for split in ("valid", "test"))
    scores = []
    for repetition in range(settings["seeds"]):
        seed = context.seed + repetition
        torch.manual_seed(seed)
        model = MixerModel(
            settings["mixer"],
            width=settings["width"],
            layers=settings["layers"],
            heads=settings["heads"],
            context=settings["length"],
        )
        train_bytes(
            model,
            train,
            steps=settings["steps"],
            batch=settings["batch"],
            length=settings["length"],
            seed=seed,
            progress=context.progress,
        )
        scores.append(
            bits_per_byte(model, test, length=settings["length"], windows=settings["windows"])
        )
    return {
        "bits_per_byte": Measured(
            statistics.mean(scores), std=statistics.stdev(scores), n=len(scores)
        ),
        "parameters": Measured(count_parameters(model) / 1e6),
        **costs(
            settings["mixer"],
            width=settings["width"],
            heads=settings["heads"],
            lengths=settings["lengths"],
        ),
    }
