"""Distillation: losses, and training loops for language models and vision transformers.

loss = distillation_loss(student_logits, teacher_logits, labels, alpha=0.5, temperature=2)
student = student_of(teacher, layers=[0, 3, 6])
report = distil(student, teacher, batches, loss="logits", steps=300)
text = generate_text(teacher, count=64, length=128, seed=0)      # a black box's answers
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "DistilReport": "language",
    "distil": "language",
    "distil_vit": "vision",
    "distillation_loss": "losses",
    "generate_text": "text",
    "kl_divergence": "losses",
    "load_resnet20": "resnet",
    "manifold_loss": "manifold",
    "minilm_loss": "losses",
    "reverse_kl": "losses",
    "student_of": "language",
    "vit_student_of": "vision",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
