"""The pruning methods of ``METHODS``. No torch here."""

from __future__ import annotations

from transformer_compression.core import Domain, Method

BOTH: tuple[Domain, ...] = ("language", "vision")
UNSTRUCTURED = "pruning.language.unstructured"
SEMI = "pruning.language.semi_structured"


def _weights(name: str, title: str, source: str, *, data: bool) -> list[Method]:
    run = f"prune.adapters:{name}"
    return [
        Method(
            name,
            title,
            (UNSTRUCTURED, SEMI),
            BOTH,
            run,
            {"pattern": "0.5"},
            data=data,
            source=source,
        ),
        Method(
            f"{name}_2_4",
            f"{title}; two of four",
            (SEMI,),
            BOTH,
            run,
            {"pattern": "2:4"},
            data=data,
            source=source,
        ),
    ]


ENTRIES = [
    *_weights("magnitude", "weights of least magnitude, a threshold a layer", "-", data=False),
    *_weights("wanda", "weights of least |W| ||X|| in each row", "arXiv 2306.11695", data=True),
    *_weights("sparsegpt", "column by column, errors made good", "arXiv 2301.00774", data=True),
    Method(
        "sparsegpt_joint",
        "SparseGPT with the kept weights quantized at the same time",
        (UNSTRUCTURED, SEMI, "quantization.language.rounding"),
        BOTH,
        "prune.adapters:sparsegpt_joint",
        {"pattern": "0.5", "bits": 4},
        source="arXiv 2301.00774",
    ),
    Method(
        "llm_pruner",
        "heads and FFN channels whose removal costs the loss least, for good",
        ("pruning.language.structured",),
        ("language",),
        "prune.adapters:llm_pruner",
        {
            "ratio": 0.25,
            "form": "param_first",
            "reduction": "sum",
            "layers": "",
            "samples": 10,
            "length": 64,
        },
        gradients=True,
        source="arXiv 2305.11627",
    ),
    Method(
        "structured_activation",
        "heads and FFN channels that contribute least, for good, the rest corrected",
        ("pruning.language.structured", "pruning.vision.structured"),
        BOTH,
        "prune.adapters:structured_activation",
        {"ratio": 0.25, "correct": True},
        source="sheet 4.5",
    ),
    Method(
        "layer_drop",
        "layers that change their input least",
        ("pruning.language.layers",),
        ("language",),
        "prune.adapters:layer_drop",
        {"count": 3, "criterion": "block_influence", "seed": 0},
        source="arXiv 2403.03853",
    ),
    Method(
        "h2o",
        "the cache keeps recent keys and those that most attention went to",
        ("pruning.language.context",),
        ("language",),
        "prune.adapters:h2o",
        {"heavy": 64, "recent": 64},
        data=False,
        source="arXiv 2306.14048",
    ),
    Method(
        "tome",
        "similar tokens are merged in every block",
        ("pruning.vision.tokens",),
        ("vision",),
        "prune.adapters:tome",
        {"r": 8, "proportional": True},
        data=False,
        source="arXiv 2210.09461",
    ),
    Method(
        "evit",
        "tokens that the class token attends to least are fused",
        ("pruning.vision.tokens",),
        ("vision",),
        "prune.adapters:evit",
        {"keep": 0.7, "fuse": True},
        data=False,
        source="arXiv 2202.07800",
    ),
]
