"""Text from a quantized model: ``cbq generate out/ "Once upon a time"``."""

from __future__ import annotations

import torch

from cbq.config import GenerateConfig
from cbq.eval import load_any
from papers_shared.devices import pick_device


@torch.inference_mode()
def generate(config: GenerateConfig) -> str:
    """The prompt and what follows it.

    Raises:
        ValueError: an empty prompt, or a temperature below 0.
    """
    if config.temperature < 0:
        raise ValueError(f"temperature {config.temperature}: expected 0 or more")
    device = pick_device(config.device)
    model, tokenizer = load_any(config.model)
    ids = torch.tensor([tokenizer.encode(config.prompt)], device=device)
    if ids.numel() == 0:
        raise ValueError("the prompt is empty")
    options = {"do_sample": False}
    if config.temperature:
        options = {"do_sample": True, "temperature": config.temperature}  # type: ignore[dict-item]
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        out = model.to(device).generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=config.tokens,
            pad_token_id=tokenizer.eos_token_id,
            **options,
        )
    return tokenizer.decode(out[0].tolist(), skip_special_tokens=True)


def main(config: GenerateConfig) -> int:
    """Print the text."""
    print(generate(config))
    return 0
