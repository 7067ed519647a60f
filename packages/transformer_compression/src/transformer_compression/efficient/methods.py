"""The efficient architectures of ``METHODS``. No torch here.

A mixer replaces attention by fresh weights: the result has to be trained from scratch.
"""

from __future__ import annotations

from transformer_compression.core import Domain, Method


def _mixer(
    name: str,
    title: str,
    leaves: tuple[str, ...],
    domains: tuple[Domain, ...],
    source: str,
    **options: object,
) -> Method:
    return Method(
        f"mixer_{name}",
        f"{title}; to be trained from scratch",
        tuple(f"efficient.{leaf}" for leaf in leaves),
        domains,
        f"efficient.adapters:{name}",
        options,
        data=False,
        compare=False,
        source=source,
    )


ENTRIES = [
    Method(
        "fused_attention",
        "the same attention by torch's fused kernel",
        ("efficient.language.io",),
        ("language", "vision"),
        "efficient.adapters:fused_attention",
        data=False,
        source="arXiv 2205.14135",
    ),
    _mixer(
        "local",
        "a sliding window and global tokens",
        ("language.sparse", "vision.locality"),
        ("language", "vision"),
        "arXiv 2004.05150",
        window=64,
        global_tokens=1,
    ),
    _mixer(
        "linear",
        "linear attention",
        ("language.linear", "vision.attention"),
        ("language", "vision"),
        "arXiv 2006.16236",
    ),
    _mixer("retention", "retention", ("language.recurrent",), ("language",), "arXiv 2307.08621"),
    _mixer(
        "mamba", "selective state space", ("language.recurrent",), ("language",), "arXiv 2312.00752"
    ),
    _mixer(
        "pooling",
        "the mean of three neighbours less the token",
        ("vision.attention_free",),
        ("language", "vision"),
        "arXiv 2111.11418",
    ),
    Method(
        "moe",
        "a mixture of experts for each feed-forward layer; to be trained from scratch",
        ("efficient.language.ffn",),
        ("language", "vision"),
        "efficient.adapters:moe",
        {"experts": 4, "top_k": 2},
        data=False,
        compare=False,
        source="arXiv 2101.03961",
    ),
]
