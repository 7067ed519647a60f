"""Perplexity of a quantized or a float model: ``cbq eval out/ --text test.txt``."""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from cbq.cli import main as command_line

    raise SystemExit(command_line(["eval", *sys.argv[1:]]))

import json
import sys
from pathlib import Path
from typing import Any

from cbq.config import EvalConfig
from cbq.output import is_quantized, load_quantized, tokenizer_source
from cbq.train import read_text
from papers_shared.checkpoints import atomic_path
from papers_shared.devices import pick_device
from papers_shared.language_models import load_language_model, tokenize
from papers_shared.language_models.loading import BUILT_IN
from papers_shared.metrics.perplexity import Perplexity, perplexity


def load_any(name: str) -> tuple[Any, Any]:
    """A model and its tokenizer: a folder that quantize wrote, or anything else that loads.

    Raises:
        FileNotFoundError: there is no such model, or no tokenizer with it.
    """
    if not is_quantized(name):
        return load_language_model(name)
    return load_quantized(Path(name)), load_tokenizer(tokenizer_source(name))


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a folder or of a built-in model.

    Raises:
        FileNotFoundError: there is none.
    """
    if name in BUILT_IN:
        return load_language_model(name)[1]
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{name} has no tokenizer: copy the tokenizer's files of the float model into it"
        ) from error


def evaluate(config: EvalConfig) -> Perplexity:
    """See EvalConfig.

    Raises:
        ValueError: the text is shorter than a window.
    """
    text = read_text(config.text, "test")
    device = pick_device(config.device)
    model, tokenizer = load_any(config.model)
    return perplexity(
        model.to(device),
        tokenize(tokenizer, text),
        window=config.length,
        windows=config.windows,
        progress=_show,
    )


def _show(done: int, total: int, what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} {what}", end="" if done < total else "\n", file=sys.stderr)


def main(config: EvalConfig) -> int:
    """Print (and with ``output`` write) the perplexity."""
    found = evaluate(config)
    print(f"perplexity {found.value:.4f} on {found.windows} windows of {found.window} tokens")
    if config.output is not None:
        content = {"perplexity": found.value, "windows": found.windows, "window": found.window}
        with atomic_path(config.output) as path:
            path.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return 0
