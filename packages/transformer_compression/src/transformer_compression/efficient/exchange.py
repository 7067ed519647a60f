"""Fresh mixers in the place of a model's attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from transformer_compression.efficient.mixers import build_mixer


class LlamaMixer(nn.Module):
    """A mixer that is called as a transformers attention layer is (training and scoring)."""

    def __init__(self, mixer: nn.Module, layer_idx: int) -> None:
        super().__init__()
        self.mixer, self.layer_idx = mixer, layer_idx

    def forward(self, hidden_states: Tensor, **arguments: Any) -> tuple[Tensor, None]:
        """(B, T, D) -> (B, T, D), None.

        Raises:
            ValueError: with a cache: mixers decode by their own ``step``.
        """
        if arguments.get("cache", arguments.get("past_key_values")) is not None:
            raise ValueError("an exchanged mixer has no key/value cache: call with use_cache=False")
        return self.mixer(hidden_states), None


class VitMixer(nn.Module):
    """A mixer that is called as a timm attention layer is."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.mixer(x)


def exchange_mixers(model: Any, name: str, **options: Any) -> Any:
    """Replace the attention of every block by a fresh mixer, in place.

    Pretrained weights do not fit other mixers: train the result from scratch.

    Args:
        model: Llama-like (causal mixers) or a timm vision transformer (others).
        name: a key of ``mixers.MIXERS``.
        options: of the mixer.

    Returns:
        the model.

    Raises:
        ValueError: another architecture, or a mixer that does not fit it.
    """
    layers = getattr(getattr(model, "model", None), "layers", None)
    device = next(model.parameters()).device
    if layers is not None:
        width, heads = model.config.hidden_size, model.config.num_attention_heads
        for index, layer in enumerate(layers):
            mixer = build_mixer(name, width=width, heads=heads, **options)
            layer.self_attn = LlamaMixer(mixer, index)
        model.config.use_cache = False
        return model.to(device)
    blocks = getattr(model, "blocks", None)
    if blocks is None or not hasattr(blocks[0], "attn"):
        raise ValueError(
            f"{type(model).__name__}: expected a Llama-like model or a timm vision transformer"
        )
    for block in blocks:
        heads = block.attn.num_heads
        mixer = build_mixer(name, width=model.embed_dim, heads=heads, causal=False, **options)
        block.attn = VitMixer(mixer)
    return model.to(device)
