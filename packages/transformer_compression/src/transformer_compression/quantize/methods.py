"""The quantization methods as entries of ``METHODS``. No torch here."""

from __future__ import annotations

from typing import Any

from transformer_compression.core import Method

# The grid of every weight-only method; see papers_shared.quantization.GridRule.
GRID: dict[str, Any] = {
    "bits": 4,
    "group": -1,
    "symmetric": False,
    "rule": "portable",
    "search": "weighted",
}
ACTIVATIONS: dict[str, Any] = {"activation_bits": 0, "attention": False}
TUNING: dict[str, Any] = {"steps": 200, "seed": 0, **ACTIVATIONS}

ENTRIES: tuple[Method, ...] = (
    Method(
        "rtn",
        "round to nearest, on the same start scales as every other method",
        ("quantization.language.rounding",),
        ("language", "vision"),
        "quantize.rounding:rtn_language",
        {**GRID},
    ),
    Method(
        "gptq",
        "GPTQ: column by column, each error made good by the columns that follow",
        ("quantization.language.rounding",),
        ("language", "vision"),
        "quantize.rounding:gptq_language",
        {
            **GRID,
            "block": 128,
            "damping": 0.01,
            "act_order": False,
            "static_groups": False,
            "keep_zeros": True,
        },
        source="Frantar et al., arXiv 2210.17323",
    ),
    Method(
        "autoround",
        "signed gradient descent on rounding and range ends, block by block",
        ("quantization.language.rounding",),
        ("language",),
        "quantize.tuning:autoround_language",
        {**GRID, "search": "none", **TUNING},
        gradients=True,
        source="Cheng et al., arXiv 2309.05516",
    ),
    Method(
        "smoothquant",
        "SmoothQuant: activation outliers moved into the weights, then W8A8",
        ("quantization.language.smoothing",),
        ("language",),
        "quantize.smooth:smoothquant_language",
        {"alpha": 0.5, "bits": 8, "activation_bits": 8, "per": "token"},
        source="Xiao et al., arXiv 2211.10438",
    ),
    Method(
        "lwc",
        "OmniQuant's learned weight clipping, block by block",
        ("quantization.language.smoothing",),
        ("language",),
        "quantize.tuning:lwc_language",
        {**GRID, "search": "none", **TUNING, "lr": 1e-2, "both_streams": False},
        gradients=True,
        source="Shao et al., arXiv 2308.13137",
    ),
    Method(
        "awq",
        "AWQ: salient channels scaled up before rounding, then clipping",
        ("quantization.language.salient",),
        ("language",),
        "quantize.awq:awq_language",
        {**GRID, "search": "none", "clip": True, "search_batches": 2, **ACTIVATIONS},
        source="Lin et al., arXiv 2306.00978",
    ),
    Method(
        "nf4",
        "NF4: 16 normal quantiles a block of 64, scales quantized again (QLoRA's storage)",
        ("quantization.language.qat",),
        ("language",),
        "quantize.nf4:nf4_language",
        {"block": 64, "double": True},
        data=False,
        source="Dettmers et al., arXiv 2305.14314",
    ),
    Method(
        "lsq",
        "LSQ: training with quantized weights and learned steps; the float model is the teacher",
        ("quantization.language.qat", "quantization.vision.qat"),
        ("language", "vision"),
        "quantize.qat:lsq_train",
        {
            "bits": 4,
            "activation_bits": 0,
            "steps": 100,
            "lr": 1e-5,
            "train": "all",
            "seed": 0,
        },
        gradients=True,
        source="Esser et al., ICLR 2020; LLM-QAT's distillation, PEQA's scales alone",
    ),
    Method(
        "ptq4vit",
        "PTQ4ViT: twin uniform quantizers after softmax and GELU, gradient-weighted error",
        ("quantization.vision.ptq",),
        ("vision",),
        "quantize.vision:ptq4vit_vision",
        {"bits": 8, "form": "code", "seed": 0},
        gradients=True,
        source="Yuan et al., arXiv 2111.12293",
    ),
    Method(
        "fqvit",
        "FQ-ViT: power-of-two factors before LayerNorm, log2 softmax",
        ("quantization.vision.ptq",),
        ("vision",),
        "quantize.vision:fqvit_vision",
        {"bits": 8, "attention_bits": 4},
        source="Lin et al., arXiv 2111.13824",
    ),
    Method(
        "repq",
        "RepQ-ViT: channel-wise then reparameterised to one scale, log sqrt 2 softmax",
        ("quantization.vision.ptq",),
        ("vision",),
        "quantize.vision:repq_vision",
        {"bits": 6},
        source="Li et al., arXiv 2212.08254",
    ),
)
