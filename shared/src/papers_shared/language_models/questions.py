"""Zero-shot multiple choice made from running text: which ending belongs to this paragraph?"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

CONTEXT_WORDS, ENDING_WORDS, CHOICES = 48, 16, 4


@dataclass(frozen=True)
class Question:
    """A context and four endings, of which one follows it in the text."""

    context: str
    endings: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class QuestionScore:
    """Share of right answers, by summed log probability, and by that a character."""

    accuracy: float
    accuracy_per_character: float
    count: int


def make_questions(text: str, *, count: int, seed: int = 0) -> list[Question]:
    """Questions from a WikiText file.

    Articles start at lines `` = Title = ``; their paragraphs of at least 64 words count, in
    articles with at least 4 of them. Words 1-48 are the context, words 49-64 the right ending; the
    wrong ones are those words of three other paragraphs of the same article. Chance: 25 %.

    Args:
        text: a WikiText file.
        count: how many.
        seed: of the draw of paragraphs, wrong endings, and places.

    Raises:
        ValueError: the text does not give so many.

    Source: transformer_compression sheet, section 5.
    """
    articles: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        words = line.split()
        heading = len(words) > 2 and words[0] == words[-1] == "="
        if heading and words[1] != "=":
            articles.append([])
        elif words and words[0] != "=" and len(words) >= CONTEXT_WORDS + ENDING_WORDS:
            articles[-1].append(words)
    articles = [paragraphs for paragraphs in articles if len(paragraphs) >= CHOICES]
    places = [(a, p) for a, paragraphs in enumerate(articles) for p in range(len(paragraphs))]
    if len(places) < count:
        raise ValueError(f"the text gives {len(places)} questions, {count} were asked for")
    draw = random.Random(seed)
    draw.shuffle(places)
    questions = []
    for article, paragraph in places[:count]:
        others = [p for p in range(len(articles[article])) if p != paragraph]
        chosen = [paragraph, *draw.sample(others, CHOICES - 1)]
        draw.shuffle(chosen)
        span = slice(CONTEXT_WORDS, CONTEXT_WORDS + ENDING_WORDS)
        questions.append(
            Question(
                " ".join(articles[article][paragraph][:CONTEXT_WORDS]),
                tuple(" ".join(articles[article][p][span]) for p in chosen),
                chosen.index(paragraph),
            )
        )
    return questions


@torch.inference_mode()
def question_accuracy(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> QuestionScore:
    """Answer each question with the ending of highest log probability.

    The context runs once; its keys and values are shared by the four endings. An ending is
    tokenised by itself, with a leading space.

    Args:
        model: a causal language model of transformers, in eval mode.
        tokenizer: with ``encode(text, add_special_tokens=False)``.
        questions: see ``make_questions``.
        progress: called as ``progress(done, total, what)``.
    """
    if not questions:
        raise ValueError("no questions were given")
    device = next(model.parameters()).device
    # Renamed in transformers 5.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    by_sum = by_character = 0
    for index, question in enumerate(questions):
        context = tokenizer.encode(question.context, add_special_tokens=False)
        endings = [
            tokenizer.encode(" " + ending, add_special_tokens=False) for ending in question.endings
        ]
        longest = max(map(len, endings))
        padded = torch.tensor([e + [0] * (longest - len(e)) for e in endings], device=device)
        first = model(torch.tensor([context], device=device), use_cache=True, logits_to_keep=1)
        cache = first[name]
        cache.batch_repeat_interleave(len(endings))
        # Padding stands at the end: causality keeps it from what is scored.
        rest = model(padded, use_cache=True, **{name: cache}).logits
        logits = torch.cat([first.logits.expand(len(endings), -1, -1), rest[:, :-1]], 1)
        logs = logits.float().log_softmax(-1).gather(-1, padded[..., None])[..., 0]
        sums = [logs[i, : len(e)].sum().item() for i, e in enumerate(endings)]
        rates = [s / len(e) for s, e in zip(sums, question.endings, strict=True)]
        by_sum += sums.index(max(sums)) == question.right
        by_character += rates.index(max(rates)) == question.right
        progress(index + 1, len(questions), "questions")
    return QuestionScore(by_sum / len(questions), by_character / len(questions), len(questions))
