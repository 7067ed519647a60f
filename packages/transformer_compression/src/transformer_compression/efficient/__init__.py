"""Efficient architectures: token mixers and feed-forward layers in the place of the usual ones.

mixer = build_mixer("retention", width=128, heads=4)
y = mixer(x)                                # (B, T, D)
y, state = mixer.step(x[:, :1], None)       # one token at a time, O(1) where the mixer has it
exchange_mixers(model, "linear")            # of a fresh model: to be trained from scratch
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "MIXERS": "mixers",
    "Mamba": "ssm",
    "MixerModel": "byte_model",
    "MoEFeedForward": "moe",
    "Retention": "retention",
    "build_mixer": "mixers",
    "exchange_mixers": "exchange",
    "linear_attention": "attention",
    "performer_features": "attention",
    "selective_scan": "ssm",
    "state_bytes": "mixers",
    "window_attention": "local",
    "window_mask": "local",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
