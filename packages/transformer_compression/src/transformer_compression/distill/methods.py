"""The distillation methods of ``METHODS``. No torch here."""

from __future__ import annotations

from transformer_compression.core import Method

_LANGUAGE = {"every": 3, "steps": 300, "lr": 3e-4, "alpha": 0.5}
_VISION = {"every": 2, "steps": 300, "lr": 5e-4, "alpha": 0.5, "seed": 0}


def _language(name: str, title: str, leaf: str, source: str, **options: object) -> Method:
    return Method(
        name,
        title,
        (f"distillation.language.{leaf}",),
        ("language",),
        "distill.adapters:language",
        {"loss": name.removeprefix("kd_"), **_LANGUAGE, **options},
        gradients=True,
        compare=False,
        source=source,
    )


ENTRIES = [
    _language(
        "kd_logits",
        "a student of every third layer matches the logits",
        "logits",
        "arXiv 1503.02531, 1910.01108",
        temperature=2.0,
    ),
    _language(
        "kd_reverse",
        "the same with the reverse divergence",
        "logits",
        "arXiv 2306.08543",
        temperature=1.0,
    ),
    _language(
        "kd_hidden",
        "hidden states, attention scores, then logits",
        "hints",
        "arXiv 1909.10351 (TinyBERT)",
    ),
    _language(
        "kd_minilm",
        "attention and value relations of the last layer",
        "hints",
        "arXiv 2002.10957 (MiniLM)",
    ),
    Method(
        "kd_text",
        "a student learns from text that the teacher writes",
        ("distillation.language.api",),
        ("language",),
        "distill.adapters:black_box",
        {
            "every": 3,
            "steps": 300,
            "lr": 3e-4,
            "count": 64,
            "length": 256,
            "prompt": 32,
            "temperature": 1.0,
            "seed": 0,
        },
        gradients=True,
        compare=False,
        source="arXiv 1606.07947 (sequence level)",
    ),
    Method(
        "kd_vision_logits",
        "a student of every second block matches the logits",
        ("distillation.vision.logits",),
        ("vision",),
        "distill.adapters:vision",
        {"loss": "logits", **_VISION, "temperature": 1.0},
        gradients=True,
        compare=False,
        source="arXiv 2012.12877",
    ),
    Method(
        "kd_manifold",
        "patches lie to each other as the teacher's do, and logits",
        ("distillation.vision.hints",),
        ("vision",),
        "distill.adapters:vision",
        {"loss": "manifold", **_VISION, "temperature": 1.0},
        gradients=True,
        compare=False,
        source="arXiv 2107.01378",
    ),
    Method(
        "kd_cnn",
        "the model goes on learning from a convolutional teacher (ResNet-20, CIFAR-10)",
        ("distillation.vision.cross", "distillation.vision.logits"),
        ("vision",),
        "distill.adapters:from_cnn",
        {"steps": 300, "lr": 2e-4, "alpha": 0.5, "hard": True},
        gradients=True,
        compare=False,
        source="arXiv 2012.12877 (DeiT)",
    ),
]
