"""The survey's taxonomy: every leaf, and the methods that the survey names for it. No torch here.

Source: Tang et al., arXiv 2402.05964, as the paper's sheet gives it (section 3).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Leaf:
    """One leaf.

    Attributes:
        family: quantization, distillation, pruning, efficient architecture, others.
        title: what the leaf is about, domain first.
        named: methods that the survey names.
    """

    family: str
    title: str
    named: str


LEAVES: dict[str, Leaf] = {
    "quantization.language.smoothing": Leaf(
        "quantization",
        "language, PTQ: outlier smoothing, equivalent transforms",
        "Outlier Suppression(+), SmoothQuant, OmniQuant, RPTQ, QLLM",
    ),
    "quantization.language.rounding": Leaf(
        "quantization", "language, PTQ: second order, rounding", "GPTQ, SignRound, CBQ"
    ),
    "quantization.language.salient": Leaf(
        "quantization",
        "language, PTQ: salient weights, sparse outliers",
        "AWQ, SqueezeLLM, ZeroQuant",
    ),
    "quantization.language.qat": Leaf(
        "quantization",
        "language, QAT: mixed precision, integer only, parameter-efficient",
        "Q-BERT, I-BERT, PEQA, QLoRA, LLM-QAT",
    ),
    "quantization.vision.ptq": Leaf(
        "quantization",
        "vision, PTQ: ranking, twin uniform, log2, reparameterisation",
        "PTQ-ViT, PTQ4ViT, FQ-ViT, APQ-ViT, NoisyQuant, RepQ-ViT",
    ),
    "quantization.vision.qat": Leaf("quantization", "vision, QAT", "Q-ViT, Quantformer, OFQ"),
    "distillation.language.logits": Leaf(
        "distillation", "language: logits", "DistilBERT, MixKD, MiniLLM, GKD, TED"
    ),
    "distillation.language.hints": Leaf(
        "distillation", "language: hints", "PKD, MiniLM, TinyBERT, MobileBERT, HomoBERT"
    ),
    "distillation.language.api": Leaf(
        "distillation",
        "language: API-based, from a black box's text",
        "Fine-tune-CoT, SCOTT, KARD, PaD, LaMini-LM, Lion, Multitask-ICT, Meta-ICT, Symbolic KD",
    ),
    "distillation.vision.logits": Leaf("distillation", "vision: logits", "DeiT, TinyViT"),
    "distillation.vision.hints": Leaf("distillation", "vision: hints", "DearKD, ManifoldKD, ViTKD"),
    "distillation.vision.cross": Leaf(
        "distillation", "vision: across architectures", "cross-inductive-bias, CSKD"
    ),
    "pruning.language.unstructured": Leaf("pruning", "language: unstructured", "SparseGPT, Wanda"),
    "pruning.language.semi_structured": Leaf(
        "pruning", "language: semi-structured (N:M)", "SparseGPT, Wanda"
    ),
    "pruning.language.structured": Leaf(
        "pruning",
        "language: structured (heads, channels)",
        "LLM-Pruner, LoRAShear, Sheared LLaMA, SliceGPT",
    ),
    "pruning.language.layers": Leaf("pruning", "language: layers", "depth pruning"),
    "pruning.language.context": Leaf(
        "pruning", "language: context and tokens", "Dynamic Context Pruning, Power-BERT"
    ),
    "pruning.vision.tokens": Leaf(
        "pruning", "vision: tokens", "Patch Slimming, DynamicViT, EViT, ToMe"
    ),
    "pruning.vision.structured": Leaf(
        "pruning", "vision: structured", "ViT-Slim, SAViT, X-Pruner, NViT, S2ViTE"
    ),
    "efficient.language.sparse": Leaf(
        "efficient architecture",
        "language, attention: sparse patterns",
        "Sparse Transformer, Longformer, BigBird, Reformer",
    ),
    "efficient.language.linear": Leaf(
        "efficient architecture", "language, attention: linear", "Linear Transformer, Performer"
    ),
    "efficient.language.io": Leaf(
        "efficient architecture", "language, attention: exact, IO-aware", "FlashAttention"
    ),
    "efficient.language.recurrent": Leaf(
        "efficient architecture",
        "language: beyond the Transformer",
        "S4, H3, Mamba, RetNet, RWKV, Hyena",
    ),
    "efficient.language.ffn": Leaf(
        "efficient architecture",
        "language: FFN",
        "GShard, Switch, Expert Choice, DeepSpeed-MoE, SwiGLU",
    ),
    "efficient.vision.locality": Leaf(
        "efficient architecture",
        "vision: locality",
        "T2T, LeViT, MobileViT, TNT, CrossViT, Swin, CSWin, KVT, HiLo",
    ),
    "efficient.vision.attention": Leaf(
        "efficient architecture",
        "vision: faster attention",
        "Image Transformer, FasterViT, FLatten",
    ),
    "efficient.vision.attention_free": Leaf(
        "efficient architecture",
        "vision: attention-free",
        "AFT, GFNet, MLP-Mixer, ResMLP, CycleMLP, PoolFormer, Vim, VMamba",
    ),
    "others.decomposition": Leaf(
        "others", "tensor decomposition", "Kronecker (GPT-2), LoRD, TSVD, TensorGPT"
    ),
    "others.early_exit": Leaf("others", "early exit", "CALM, SkipDecode"),
    "others.speculative": Leaf("others", "speculative sampling", "Speculative Sampling, LLMCad"),
}
