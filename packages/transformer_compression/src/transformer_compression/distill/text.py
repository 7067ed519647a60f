"""Text that a model writes itself: data-free training, and distillation from a black box."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def generate_text(
    model: Any,
    *,
    count: int,
    length: int,
    seed: int,
    prompts: Tensor | None = None,
    greedy: int = 4,
    temperature: float = 1.0,
    batch: int = 32,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> list[Tensor]:
    """Continuations sampled from a language model; only what it answers is used of it.

    Without prompts a sequence starts with a drawn token; the first ``greedy`` tokens after the
    start are the likeliest ones and the rest is sampled (LLM-QAT's rule).

    Args:
        model: a causal language model.
        count: sequences.
        length: tokens of each, the prompt included.
        seed: of every draw.
        prompts: token ids (P, L); used in turn. With prompts nothing is greedy.
        greedy: likeliest tokens at the start.
        temperature: of the sampling.
        batch: sequences at a time.
        progress: called as ``progress(done, total, what)``.

    Returns:
        batches of token ids (batch, length).

    Raises:
        ValueError: prompts that leave no token to write.
    """
    from transformers import DynamicCache

    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.vocab_size
    if prompts is None:
        start = torch.randint(0, vocabulary, (count, 1), generator=generator)
    else:
        start = prompts[torch.arange(count) % len(prompts)]
        greedy = 0
    if start.shape[1] >= length:
        raise ValueError(f"prompts of {start.shape[1]} tokens leave nothing of {length} to write")
    device = next(model.parameters()).device
    # transformers 5.24 renamed the argument.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    model.eval()
    batches = []
    for part in start.split(batch):
        tokens, fresh = part, part
        cache = DynamicCache(config=model.config)
        while tokens.shape[1] < length:
            out = model(fresh.to(device), **{name: cache}, use_cache=True)
            logits = out.logits[:, -1].float().cpu()
            if tokens.shape[1] - part.shape[1] < greedy:
                fresh = logits.argmax(-1, keepdim=True)
            else:
                fresh = torch.multinomial(
                    (logits / temperature).softmax(-1), 1, generator=generator
                )
            tokens = torch.cat([tokens, fresh], 1)
        batches.append(tokens)
        progress(sum(len(b) for b in batches), count, "sequences")
    return batches
