"""The models that the survey's tables speak of, by their sizes; nothing is downloaded.

Source: sheet, section "Golden values" (hosts) and 4.11.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Host:
    """A language model: family, hidden size, layers, heads, FFN width, KV heads, vocabulary."""

    family: str
    hidden: int
    layers: int
    heads: int
    ffn: int
    kv_heads: int = 0
    vocabulary: int = 0

    def config(self) -> Any:
        """The transformers config."""
        if self.family == "opt":
            from transformers import OPTConfig

            return OPTConfig(
                hidden_size=self.hidden,
                word_embed_proj_dim=self.hidden,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                ffn_dim=self.ffn,
                vocab_size=self.vocabulary or 50272,
            )
        from transformers import LlamaConfig

        return LlamaConfig(
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads or self.heads,
            intermediate_size=self.ffn,
            vocab_size=self.vocabulary or 32000,
            tie_word_embeddings=self.family == "smollm2",
        )


def _opt(hidden: int, layers: int, heads: int) -> Host:
    return Host("opt", hidden, layers, heads, 4 * hidden)


HOSTS: Mapping[str, Host] = {
    "llama1_7b": Host("llama", 4096, 32, 32, 11008),
    "llama1_13b": Host("llama", 5120, 40, 40, 13824),
    "llama1_30b": Host("llama", 6656, 60, 52, 17920),
    "llama1_65b": Host("llama", 8192, 80, 64, 22016),
    "opt_125m": _opt(768, 12, 12),
    "opt_1p3b": _opt(2048, 24, 32),
    "opt_6p7b": _opt(4096, 32, 32),
    "opt_30b": _opt(7168, 48, 56),
    "opt_66b": _opt(9216, 64, 72),
    "smollm2_135m": Host("smollm2", 576, 30, 9, 1536, kv_heads=3, vocabulary=49152),
}
TIMM_VITS = (
    "deit_tiny_patch16_224",
    "deit_small_patch16_224",
    "deit_base_patch16_224",
    "swin_tiny_patch4_window7_224",
)


def build_host(name: str) -> Any:
    """A host with weights on the meta device: shapes only.

    Raises:
        ValueError: no such host.
    """
    if name not in HOSTS:
        raise ValueError(f"no host is called {name!r}; known: {', '.join(HOSTS)}")
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(HOSTS[name].config())


def count_host_parameters(name: str) -> int:
    """Parameters of a host, shared ones once."""
    return sum(p.numel() for p in build_host(name).parameters())


def vision_size(name: str) -> tuple[int, int]:
    """Parameters and multiply-accumulates of a timm model for one picture.

    Attention's products and the classifier are counted; fused attention is off, so that the
    counter sees them.
    """
    import timm
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model: Any = timm.create_model(name).eval()
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
        counter = FlopCounterMode(display=False)
        size = model.default_cfg["input_size"][-1]
        with counter:
            model(torch.empty(1, 3, size, size))
    parameters = sum(p.numel() for p in model.parameters())
    return parameters, counter.get_total_flops() // 2
