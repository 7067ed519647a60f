"""What the survey files under others, as entries of ``METHODS``. No torch here."""

from __future__ import annotations

from transformer_compression.core import Method

ENTRIES: tuple[Method, ...] = (
    Method(
        "low_rank",
        "truncated SVD of every linear layer, by the error of its outputs",
        ("others.decomposition",),
        ("language",),
        "others.low_rank:low_rank_language",
        {"ratio": 0.7, "activations": True},
        source="sheet 4.14; TSVD, LoRD",
    ),
    Method(
        "early_exit",
        "a token that an intermediate layer is sure of skips the layers behind it",
        ("others.early_exit",),
        ("language",),
        "others.early_exit:early_exit_language",
        {"threshold": 0.9},
        data=False,
        source="arXiv 2207.07061",
    ),
    Method(
        "speculative",
        "a draft of every third layer proposes tokens, the model accepts or replaces them",
        ("others.speculative",),
        ("language",),
        "others.speculative:speculative_language",
        {"every": 3, "proposals": 4},
        data=False,
        source="arXiv 2211.17192, 2302.01318",
    ),
)
