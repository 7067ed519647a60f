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
)
