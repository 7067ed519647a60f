"""Causal language models of Hugging Face's layout: loading, text, the walk block by block.

model, tokenizer = load_language_model("smollm2-135m")
tokens = tokenize(tokenizer, wikitext2("valid"))
batches = calibration_windows(tokens, count=8, length=512, seed=0)
for index, block, stream in walk_blocks(model, batches):
    ...                      # look at the inputs, change the block; what follows sees the change
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "BlockStream": "blocks",
    "LAYOUTS": "layouts",
    "Question": "questions",
    "block_layout": "layouts",
    "block_linears": "blocks",
    "block_names": "blocks",
    "call_block": "blocks",
    "calibration_windows": "text",
    "capture_inputs": "blocks",
    "check_norm": "layouts",
    "find_blocks": "blocks",
    "load_causal_lm": "loading",
    "load_language_model": "loading",
    "load_weights": "loading",
    "make_questions": "questions",
    "observe_inputs": "blocks",
    "question_accuracy": "questions",
    "run_block": "blocks",
    "tiny_llama": "loading",
    "tokenize": "text",
    "walk_blocks": "blocks",
    "wikitext2": "text",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"papers_shared.language_models.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'papers_shared.language_models' has no attribute {name!r}")
