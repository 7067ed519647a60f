"""What the rows of the table ``mixers`` compute: training from scratch, latency, memory."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch

from papers_shared.complexity import count_parameters, peak_memory
from papers_shared.language_models import wikitext2
from papers_shared.tables.recipe import Context, Measured
from transformer_compression.cpu_time import cpu_seconds, one_thread
from transformer_compression.efficient.byte_model import (
    MixerModel,
    bits_per_byte,
    train_bytes,
)
from transformer_compression.efficient.mixers import build_mixer, state_bytes

MANY = 10  # decoded tokens timed together, which are short


@torch.inference_mode()
def cost_row(context: Context) -> dict[str, Measured]:
    """Milliseconds and peak megabytes of a whole pass, and of one decoded token, by length.

    One mixer alone, one sequence, float32, CPU time of one thread.
    """
    settings = context.settings
    found: dict[str, Measured] = {}
    torch.manual_seed(context.seed)
    mixer = build_mixer(settings["mixer"], width=settings["width"], heads=settings["heads"]).eval()
    lengths = settings["lengths"]
    with one_thread():
        for done, length in enumerate(lengths):
            x = torch.randn(1, length, settings["width"])
            state = filled_state(mixer, x)
            run, step = partial(mixer, x), partial(mixer.step, x[:, :1], state)
            forward = 1e3 * cpu_seconds(run, repeats=settings["repeats"])
            token = 1e3 * cpu_seconds(partial(_many, step), repeats=settings["repeats"]) / MANY
            found[f"forward_{length}"] = Measured(forward, n=settings["repeats"])
            found[f"memory_{length}"] = Measured(peak_memory(run).bytes / 1e6)
            found[f"step_{length}"] = Measured(token, n=settings["repeats"])
            found[f"state_{length}"] = Measured(state_bytes(state) / 1e3)
            context.progress(done + 1, len(lengths), "lengths")
    return found


def _many(step: Any) -> None:
    for _ in range(MANY):
        step()


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
    """Bits per byte of a small byte model, mean over several seeds."""
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
    }
