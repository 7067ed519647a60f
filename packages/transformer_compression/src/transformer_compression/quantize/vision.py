"""Post-training quantization of timm vision transformers: PTQ4ViT, FQ-ViT, RepQ-ViT.

Each linear layer and each product of attention computes as if quantized. ``prepare`` puts the
quantizers in place (their ranges are buffers, so a state dict holds them); the three functions
below it find the ranges from calibration pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers_shared.quantization import GridRule, quantized_bytes, round_to_nearest
from transformer_compression.core import Data, Outcome
from transformer_compression.quantize import ptq4vit, vit_grids
from transformer_compression.quantize.ptq4vit import Form

PREPARED = ("ptq4vit", "fqvit", "repq")


class Quantizer(nn.Module):
    """Inputs of a layer, or an operand of a product, moved to a grid.

    Args:
        apply: ``apply(x, scale, zero, bits)``.
        bits: bits a code.
        shape: of the scale, such as ``(heads, 1, 1)``.
    """

    scale: Tensor
    zero: Tensor

    def __init__(
        self,
        apply: Callable[[Tensor, Tensor, Tensor, int], Tensor],
        bits: int,
        shape: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self._apply_grid = apply
        self.bits = bits
        self.register_buffer("scale", torch.ones(tuple(shape)))
        self.register_buffer("zero", torch.zeros(()))

    def set(self, scale: Tensor, zero: Tensor | float = 0.0) -> None:
        """Fix the grid."""
        self.scale.copy_(scale.reshape(self.scale.shape))
        self.zero.copy_(torch.as_tensor(zero))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as ``x``."""
        return self._apply_grid(x, self.scale, self.zero, self.bits)


def _uniform(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    return ptq4vit.uniform(x, scale, bits)


def _gelu(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    return ptq4vit.twin_gelu(x, scale, bits)


def _softmax(form: Form) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
    return lambda x, scale, zero, bits: ptq4vit.twin_softmax(x, scale, bits, form)


def _log2(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    return vit_grids.log2_softmax(x, bits)


def _log_sqrt2(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    return vit_grids.log_sqrt2_softmax(x, scale, bits)


def _factor(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    return ((x / scale).add(zero).round().clamp(0, 2**bits - 1) - zero) * scale


class Product(nn.Module):
    """A matrix product whose operands pass through quantizers; a module, so that hooks see it."""

    def __init__(self) -> None:
        super().__init__()
        self.left: nn.Module = nn.Identity()
        self.right: nn.Module = nn.Identity()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(…, n, k) times (…, k, m)."""
        return self.left(a) @ self.right(b)


class OpenAttention(nn.Module):
    """timm's attention with its two products as modules; the same names in the state dict.

    Args:
        attention: whose layers are taken over.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        if getattr(attention, "gate", None) is not None:
            raise ValueError("attention with a gate is not supported here")
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.attn_dim, self.scale = attention.attn_dim, attention.scale
        self.qkv, self.proj = attention.qkv, attention.proj
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.norm = getattr(attention, "norm", nn.Identity())
        self.scores, self.values = Product(), Product()

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        if attn_mask is not None or is_causal:
            raise ValueError("masks are not supported here")
        batch, count, _ = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = self.scores(self.q_norm(q), self.k_norm(k).transpose(-2, -1)) * self.scale
        x = self.values(scores.softmax(-1), v)
        return self.proj(self.norm(x.transpose(1, 2).reshape(batch, count, self.attn_dim)))


class QuantizedInputLinear(nn.Linear):
    """A linear layer with a quantizer before it; parameters are the given layer's."""

    def __init__(self, linear: nn.Linear, quantizer: nn.Module) -> None:
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.weight, self.bias = linear.weight, linear.bias
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return super().forward(self.quantizer(x))


def _place(model: nn.Module, name: str, quantizer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    owner = model.get_submodule(parent)
    setattr(owner, child, QuantizedInputLinear(getattr(owner, child), quantizer))


def open_attention(model: Any) -> None:
    """Replace every block's attention by ``OpenAttention``, in place."""
    for block in model.blocks:
        if not isinstance(block.attn, OpenAttention):
            block.attn = OpenAttention(block.attn)


def linear_names(model: Any) -> list[str]:
    """The quantized linear layers: four a block, and the classifier."""
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    return [f"blocks.{i}.{p}" for i in range(len(model.blocks)) for p in parts] + ["head"]


def prepare(model: Any, method: str, options: Mapping[str, Any]) -> None:
    """Put a method's quantizers into a timm vision transformer, in place, ranges still unset.

    Args:
        model: a timm ``VisionTransformer``.
        method: ``ptq4vit``, ``fqvit`` or ``repq``.
        options: the method's own.

    Raises:
        ValueError: another method, or a model of another kind.
    """
    if method not in PREPARED:
        raise ValueError(f"method={method!r}: expected one of {', '.join(PREPARED)}")
    if not (hasattr(model, "blocks") and hasattr(model, "head")):
        raise ValueError(f"{type(model).__name__} is no timm VisionTransformer")
    open_attention(model)
    bits = options["bits"]
    on_input = _uniform if method == "ptq4vit" else vit_grids.quantize_asymmetric
    for name in linear_names(model):
        apply, shape = on_input, ()
        if method == "ptq4vit" and name.endswith("fc2"):
            apply = _gelu
        _place(model, name, Quantizer(apply, bits, shape))
    for block in model.blocks:
        attention = block.attn
        heads = (attention.num_heads, 1, 1) if method == "ptq4vit" else ()
        attention.scores.left = Quantizer(on_input, bits, heads)
        attention.scores.right = Quantizer(on_input, bits, heads)
        attention.values.right = Quantizer(on_input, bits, heads)
        attention.values.left = {
            "ptq4vit": lambda: Quantizer(_softmax(options.get("form", "code")), bits),
            "fqvit": lambda: Quantizer(_log2, options.get("attention_bits", bits)),
            "repq": lambda: Quantizer(_log_sqrt2, bits),
        }[method]()
        if method == "fqvit":
            width = block.norm1.weight.numel()
            for norm in ("norm1", "norm2"):
                layer = getattr(block, norm)
                setattr(block, norm, nn.Sequential(Quantizer(_factor, 8, (width,)), layer))
    model.to(next(model.parameters()).device)


class _Seen:
    """Inputs (and output gradients) of modules over the calibration pictures.

    Args:
        model: in eval mode, its quantizers not yet in place.
        names: of the modules.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.inputs: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in names}
        self.gradients: dict[str, list[Tensor]] = {name: [] for name in names}
        self.handles: list[Any] = []
        for name in names:
            module = model.get_submodule(name)
            self.handles.append(module.register_forward_hook(self._hook(name)))

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            self.inputs[name].append(tuple(a.detach() for a in args))
            if out.requires_grad:
                out.register_hook(lambda grad: self.gradients[name].append(grad.detach()))

        return hook

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()

    def x(self, name: str, operand: int = 0) -> Tensor:
        """All inputs of a module, batches joined."""
        return torch.cat([args[operand] for args in self.inputs[name]])

    def gradient(self, name: str) -> Tensor:
        """All gradients at its output; zeros where there were none."""
        found = self.gradients[name]
        if found:
            return torch.cat(found)
        raise ValueError(f"no gradient reached {name}")


def _product_names(model: Any) -> list[str]:
    return [f"blocks.{i}.attn.{p}" for i in range(len(model.blocks)) for p in ("scores", "values")]


def ptq4vit_vision(model: Any, data: Data, *, bits: int, form: Form, seed: int) -> Outcome:
    """PTQ4ViT: all layers from float inputs, their errors weighted by the loss gradient.

    The gradient is that of the cross-entropy to a label drawn from the float prediction (the
    Fisher information): the released calibrator compares the prediction with itself, whose
    gradient is zero but for rounding.

    Args:
        model: a timm vision transformer, changed in place.
        data: calibration pictures (32 of them in the paper).
        bits: of weights and activations.
        form: of the softmax quantizer, see ``ptq4vit.twin_softmax``.
        seed: of the drawn labels.
    """
    if form not in get_args(Form):
        raise ValueError(f"form={form!r}: expected code or paper")
    open_attention(model)
    model.eval()
    linears, products = linear_names(model), _product_names(model)
    seen = _Seen(model, [*linears, *products])
    draw = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for batch in data.batches:
            logits = model(batch)
            chosen = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=draw)[:, 0]
            loss = F.cross_entropy(logits, chosen.to(logits.device), reduction="sum")
            loss.backward()
        model.zero_grad(set_to_none=True)
    seen.close()
    prepare(model, "ptq4vit", {"bits": bits, "form": form})
    sizes = {}
    with torch.no_grad():
        for step, name in enumerate(linears):
            layer = model.get_submodule(name)
            x, gradient = seen.x(name), seen.gradient(name)
            found = ptq4vit.search_linear(
                x.flatten(0, -2) if x.ndim > 2 else x,
                layer.weight,
                gradient.flatten(0, -2) if gradient.ndim > 2 else gradient,
                bits=bits,
                row_chunks=3 if name.endswith("qkv") else 1,
                post_gelu=name.endswith("fc2"),
            )
            chunks = layer.weight.chunk(len(found.weight))
            near = [ptq4vit.uniform(c, s, bits) for c, s in zip(chunks, found.weight, strict=True)]
            layer.weight.copy_(torch.cat(near))
            layer.quantizer.set(found.inputs)
            sizes[f"{name}.weight"] = layer.weight.numel() * bits / 8 + 2 * len(found.weight)
            data.progress(step + 1, len(linears), "layers")
        for index, block in enumerate(model.blocks):
            prefix = f"blocks.{index}.attn"
            q, k = seen.x(f"{prefix}.scores"), seen.x(f"{prefix}.scores", 1).transpose(-2, -1)
            left, right = ptq4vit.search_query_key(
                q, k, seen.gradient(f"{prefix}.scores"), bits=bits
            )
            block.attn.scores.left.set(left)
            block.attn.scores.right.set(right)
            split, intervals = ptq4vit.search_softmax_matmul(
                seen.x(f"{prefix}.values"),
                seen.x(f"{prefix}.values", 1),
                seen.gradient(f"{prefix}.values"),
                bits=bits,
                form=form,
            )
            block.attn.values.left.set(split)
            block.attn.values.right.set(intervals)
        sizes |= _patch_embedding(model, bits)
    return Outcome(model, sizes, notes=(_SAVES_NOTHING,))


_SAVES_NOTHING = "quantized values in floating point: time and memory are those of the dense model"


@torch.no_grad()
def _patch_embedding(model: Any, bits: int) -> dict[str, float]:
    """Weights of the patch embedding a row, its input stays float (all three methods)."""
    conv = model.patch_embed.proj
    rule = GridRule(bits, symmetric=True, rule="smoothquant", search="none")
    flat = conv.weight.flatten(1)
    conv.weight.copy_(rule(flat).nearest(flat).view_as(conv.weight))
    size = quantized_bytes(*flat.shape, bits=bits, symmetric=True)
    return {"patch_embed.proj.weight": size}


def _observe(model: Any, data: Data, names: Sequence[str]) -> _Seen:
    seen = _Seen(model, names)
    with torch.no_grad():
        for batch in data.batches:
            model(batch)
    seen.close()
    return seen


def _minmax(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    scale = ((x.max() - x.min()) / (2**bits - 1)).clamp(min=1e-8)
    return scale, torch.round(-x.min() / scale).clamp(0, 2**bits - 1)


def fqvit_vision(model: Any, data: Data, *, bits: int, attention_bits: int) -> Outcome:
    """FQ-ViT: ranges from smallest to largest value, power-of-two factors before the norms.

    Args:
        model: a timm vision transformer, changed in place.
        data: calibration pictures.
        bits: of weights (a row) and activations (a tensor).
        attention_bits: of the log2 probabilities.
    """
    open_attention(model)
    model.eval()
    norms = [f"blocks.{i}.{n}" for i in range(len(model.blocks)) for n in ("norm1", "norm2")]
    linears, products = linear_names(model), _product_names(model)
    seen = _observe(model, data, [*linears, *products, *norms])
    prepare(model, "fqvit", {"bits": bits, "attention_bits": attention_bits})
    rule = GridRule(bits, symmetric=True, rule="smoothquant", search="none")
    sizes = {}
    with torch.no_grad():
        for name in norms:
            factor = vit_grids.power_of_two_factor(seen.x(name))
            model.get_submodule(name)[0].set(factor.scale, factor.zero)
        for name in linears:
            layer = model.get_submodule(name)
            layer.quantizer.set(*_minmax(seen.x(name), bits))
            near = round_to_nearest(layer.weight, rule)
            layer.weight.copy_(near.dequantize())
            sizes[f"{name}.weight"] = quantized_bytes(
                *layer.weight.shape, bits=bits, symmetric=True
            )
        for index, block in enumerate(model.blocks):
            prefix = f"blocks.{index}.attn"
            block.attn.scores.left.set(*_minmax(seen.x(f"{prefix}.scores"), bits))
            block.attn.scores.right.set(*_minmax(seen.x(f"{prefix}.scores", 1), bits))
            block.attn.values.right.set(*_minmax(seen.x(f"{prefix}.values", 1), bits))
        sizes |= _patch_embedding(model, bits)
    return Outcome(model, sizes, notes=(_SAVES_NOTHING,))


def repq_vision(model: Any, data: Data, *, bits: int) -> Outcome:
    """RepQ-ViT: one scale behind each LayerNorm, the channels' differences in the weights.

    Args:
        model: a timm vision transformer, changed in place.
        data: calibration pictures.
        bits: of weights (a row) and activations (a tensor).
    """
    open_attention(model)
    model.eval()
    linears, products = linear_names(model), _product_names(model)
    seen = _observe(model, data, [*linears, *products])
    prepare(model, "repq", {"bits": bits})
    sizes = {}
    with torch.no_grad():
        for index, block in enumerate(model.blocks):
            for norm, layer in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
                name = f"blocks.{index}." + ("attn.qkv" if norm is block.norm1 else "mlp.fc1")
                made = vit_grids.reparameterise(
                    seen.x(name), norm.weight, norm.bias, layer.weight, layer.bias, bits
                )
                norm.weight.copy_(made.norm_weight)
                norm.bias.copy_(made.norm_bias)
                layer.weight.copy_(made.weight)
                layer.bias.copy_(made.bias)
                layer.quantizer.set(made.scale, made.zero)
            prefix = f"blocks.{index}.attn"
            attention = block.attn
            attention.scores.left.set(*vit_grids.quantile_grid(seen.x(f"{prefix}.scores"), bits))
            right = seen.x(f"{prefix}.scores", 1)
            attention.scores.right.set(*vit_grids.quantile_grid(right, bits))
            values = seen.x(f"{prefix}.values", 1)
            attention.values.right.set(*vit_grids.quantile_grid(values, bits))
            probabilities = seen.x(f"{prefix}.values")
            attention.values.left.set(vit_grids.log_sqrt2_delta(probabilities, bits))
        for step, name in enumerate(linears):
            layer = model.get_submodule(name)
            if not name.endswith(("qkv", "fc1")):
                layer.quantizer.set(*vit_grids.quantile_grid(seen.x(name), bits))
            scale, zero = vit_grids.quantile_grid_channels(layer.weight.T, bits)
            near = vit_grids.quantize_asymmetric(layer.weight.T, scale, zero, bits)
            layer.weight.copy_(near.T)
            sizes[f"{name}.weight"] = quantized_bytes(*layer.weight.shape, bits=bits)
            data.progress(step + 1, len(linears), "layers")
        sizes |= _patch_embedding(model, bits)
    return Outcome(model, sizes, notes=(_SAVES_NOTHING,))
