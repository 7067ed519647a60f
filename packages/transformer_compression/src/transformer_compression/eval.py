"""Quality, size, latency and memory of one model: ``python -m transformer_compression.eval``."""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from transformer_compression.cli import main as command_line

    raise SystemExit(command_line(["eval", *sys.argv[1:]]))

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from papers_shared.checkpoints import atomic_path
from papers_shared.devices import pick_device
from transformer_compression.config import EvalConfig
from transformer_compression.measure import language_quality, measure_cost, vision_quality
from transformer_compression.models import Loaded, load_model


def evaluate(
    loaded: Loaded,
    *,
    text: Path | None,
    window: int,
    windows: int | None,
    questions: int,
    pictures: int,
    reference: Any = None,
) -> dict[str, float]:
    """Everything that the tables show of a model, by name.

    Args:
        loaded: the model.
        text: evaluation text; None: WikiText-2's test part.
        window, windows, questions: see ``language_quality``.
        pictures: test pictures, for vision models.
        reference: the dense model that latency is compared with.
    """
    if loaded.domain == "language":
        from papers_shared.language_models import wikitext2

        content = wikitext2("test") if text is None else text.read_text(encoding="utf-8")
        quality = language_quality(
            loaded.model,
            loaded.tokenizer,
            content,
            window=window,
            windows=windows,
            questions=questions if text is None else 0,
        )
    else:
        quality = vision_quality(loaded.model, pictures=pictures)
    cost = measure_cost(loaded.model, language=loaded.domain == "language", reference=reference)
    parameters = sum(p.numel() for p in loaded.model.parameters())
    nonzero = sum(int((p != 0).sum()) for p in loaded.model.parameters())
    return {**quality, "parameters": parameters, "nonzero": nonzero, **vars(cost)}


def show(values: Mapping[str, float]) -> str:
    """A line a value."""
    return "\n".join(f"  {name}: {value:.6g}" for name, value in values.items())


def main(config: EvalConfig) -> int:
    """Print (and with ``output`` write) what was measured."""
    loaded = load_model(config.model, device=pick_device(config.device))
    values = evaluate(
        loaded,
        text=config.text,
        window=config.window,
        windows=config.windows,
        questions=config.questions,
        pictures=config.pictures,
    )
    print(f"{config.model} ({loaded.domain}); seconds and bytes are of this device")
    print(show(values))
    if config.output is not None:
        with atomic_path(config.output) as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return 0
