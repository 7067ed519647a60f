"""Speculative sampling: a small model proposes tokens, the large one accepts or replaces them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from transformer_compression.core import Data, Outcome
from transformer_compression.distill.language import student_of


@dataclass(frozen=True)
class Verdict:
    """What became of some proposed tokens.

    Attributes:
        tokens: (n,), the accepted ones and one more: a replacement, or a bonus where all were
            accepted.
        accepted: how many proposals were.
    """

    tokens: Tensor
    accepted: int


def judge(
    proposed: Tensor, draft: Tensor, target: Tensor, generator: torch.Generator | None = None
) -> Verdict:
    """Accept token x with probability ``min(1, p(x) / q(x))``, else draw from ``max(0, p - q)``.

    What comes out has the target's distribution, whatever the draft's.

    Args:
        proposed: (k,), drawn from ``draft`` row by row.
        draft: (k, vocabulary), q.
        target: (k + 1, vocabulary), p after the same tokens; the last row is behind all of them.
        generator: of all draws.

    Source: Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318; sheet 4.14.
    """
    for i, token in enumerate(proposed.tolist()):
        p, q = target[i], draft[i]
        if torch.rand((), generator=generator) * q[token] >= p[token]:
            rest = (p - q).clamp(min=0)
            other = torch.multinomial(rest, 1, generator=generator)
            return Verdict(torch.cat([proposed[:i], other]), i)
    bonus = torch.multinomial(target[-1], 1, generator=generator)
    return Verdict(torch.cat([proposed, bonus]), len(proposed))


@torch.no_grad()
def speculative_sample(
    target: Any,
    draft: Any,
    prompt: Tensor,
    *,
    count: int,
    proposals: int = 4,
    temperature: float = 1.0,
    seed: int = 0,
) -> tuple[Tensor, float]:
    """Sample a continuation from ``target`` with the help of ``draft``; readable, without caches.

    For speed take ``target.generate(..., assistant_model=draft)`` of transformers.

    Args:
        target, draft: causal language models of one vocabulary.
        prompt: token ids (1, T).
        count: tokens to write, at least.
        proposals: of the draft at a time.
        temperature: of both.
        seed: of all draws.

    Returns:
        token ids (1, T + count or a few more), and the share of proposals that was accepted.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens, asked, accepted = prompt, 0, 0

    def probabilities(model: Any, ids: Tensor, last: int) -> Tensor:
        logits = model(ids, use_cache=False).logits[0, -last:].float()
        return (logits / temperature).softmax(-1).cpu()

    while tokens.shape[1] < prompt.shape[1] + count:
        ids, rows = tokens, []
        for _ in range(proposals):
            rows.append(probabilities(draft, ids, 1)[0])
            drawn = torch.multinomial(rows[-1], 1, generator=generator)
            ids = torch.cat([ids, drawn[None].to(ids.device)], 1)
        verdict = judge(
            ids[0, tokens.shape[1] :].cpu(),
            torch.stack(rows),
            probabilities(target, ids, proposals + 1),
            generator,
        )
        tokens = torch.cat([tokens, verdict.tokens[None].to(tokens.device)], 1)
        asked, accepted = asked + proposals, accepted + verdict.accepted
    return tokens, accepted / asked


def speculative_language(model: Any, data: Data, *, every: int, proposals: int) -> Outcome:
    """``generate`` with a draft of every ``every``-th layer (transformers' assisted generation).

    Greedy answers are unchanged, sampled ones keep their distribution. An untrained draft is
    seldom accepted: distil it first (``kd_logits``) and call ``generate(assistant_model=...)``.
    """
    draft = student_of(model, every=every)
    draft.generation_config.num_assistant_tokens = proposals
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    model.generate = partial(model.generate, assistant_model=draft)
    layers = draft.config.num_hidden_layers
    return Outcome(model, notes=[f"a draft of {layers} layers proposes {proposals} tokens a time"])
