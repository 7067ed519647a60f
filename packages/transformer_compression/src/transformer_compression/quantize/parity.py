"""Checks of recorded quantization cases; ``transformer_compression.parity`` calls them by kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers_shared.language_models import BlockStream, call_block
from papers_shared.parity import Part, fingerprint_error
from papers_shared.quantization import (
    GridRule,
    Hessian,
    fake_quantize_activation,
    gptq,
    round_to_nearest,
)
from transformer_compression.parity import Case, compare, tensors
from transformer_compression.quantize import awq, ptq4vit, smooth, vit_grids


def _outliers(x: Tensor, first: int, stride: int, factor: float) -> Tensor:
    x[..., first::stride] *= factor
    return x


def _layer_case(case: Case) -> tuple[Tensor, Tensor]:
    """Weight and inputs of the cases on one linear layer."""
    values = tensors(case)
    if not case["recipe"].startswith("x columns 5::16 times 6"):
        raise ValueError(f"no reader for the recipe {case['recipe']!r}")
    return values["lin.weight"], _outliers(values["x"], 5, 16, 6)


def _output_error(x: Tensor, new: Tensor, weight: Tensor) -> float:
    return (x @ new.T - x @ weight.T).square().mean().item()


def _gptq(case: Case) -> Iterator[Part]:
    config = case["config"]
    weight, x = _layer_case(case)
    rule = GridRule(config["bits"], config["groupsize"], config["sym"], "gptq", "none")
    hessian = Hessian(weight.shape[1])
    for sequence in x:
        hessian.add(sequence)
    result = gptq(
        weight,
        hessian.value,
        rule,
        block=config["blocksize"],
        damping=config["percdamp"],
        act_order=config["actorder"],
        static_groups=config["static_groups"],
    ).dequantize()
    # The recording's RTN has no groups.
    rtn = round_to_nearest(weight, GridRule(config["bits"], -1, config["sym"], "gptq", "none"))
    yield from compare(
        case,
        {
            "H_diag": hessian.value.diagonal(),
            "weight": result,
            "out_mse": _output_error(x, result, weight),
            "rtn_out_mse": _output_error(x, rtn.dequantize(), weight),
        },
    )


def _rtn_mse(case: Case) -> Iterator[Part]:
    config = case["config"]
    if (config["norm"], config["grid"], config["maxshrink"]) != (2.4, 100, 0.8):
        raise ValueError("the search of rule 'gptq' has norm 2.4, grid 100, maxshrink 0.8")
    weight, _ = _layer_case(case)
    near = round_to_nearest(weight, GridRule(config["bits"], -1, config["sym"], "gptq", "gptq"))
    ours = {"scale": near.grid.scale, "zero": near.grid.zero, "dequant": near.dequantize()}
    yield from compare(case, ours)


def _smoothquant(case: Case) -> Iterator[Part]:
    values = tensors(case)
    h = _outliers(values["h"], 5, 16, 20)
    width = h.shape[-1]
    norm = nn.LayerNorm(width, eps=1e-5)
    layers = [nn.Linear(width, len(values[f"{n}.weight"]), bias=False) for n in ("lin", "lin2")]
    with torch.no_grad():
        norm.weight.copy_(values["ln.weight"])
        norm.bias.copy_(values["ln.bias"])
        for layer, name in zip(layers, ("lin", "lin2"), strict=True):
            layer.weight.copy_(values[f"{name}.weight"])
        before = layers[0](norm(h))
        largest = norm(h).abs().flatten(0, -2).amax(0)
        scale = smooth.smoothing_scale(
            largest, [layer.weight for layer in layers], case["config"]["alpha"]
        )
        smooth.fold_scale(norm, layers, scale)
        x = norm(h)
        rule = GridRule(8, symmetric=True, rule="smoothquant", search="none")
        w8 = round_to_nearest(layers[0].weight, rule).dequantize()
        a8 = fake_quantize_activation(x, 8, "token")
        ours = {
            "act_scales": largest,
            "ln_weight": norm.weight,
            "weight": layers[0].weight,
            "max_change_of_output": (layers[0](x) - before).abs().max(),
            "w8": w8,
            "a8": a8,
            "w8a8_out": F.linear(a8, w8),
        }
    yield from compare(case, ours)


def _awq_rule(config: Case) -> GridRule:
    if not config["zero_point"]:
        raise ValueError("AWQ's grid without a zero point crashes in the official code")
    return GridRule(config["bits"], config["group"], False, "awq", "none")


def _awq_pseudo_quant(case: Case) -> Iterator[Part]:
    weight, x = _layer_case(case)
    near = _awq_rule(case["config"])(weight).nearest(weight)
    yield from compare(case, {"dequant": near, "out_mse": _output_error(x, near, weight)})


def _awq_clip(case: Case) -> Iterator[Part]:
    config = case["config"]
    weight, x = _layer_case(case)
    bound = awq.search_clip(
        weight,
        x.flatten(0, -2),
        _awq_rule(config),
        tokens=config["n_sample_token"],
        grid=config["n_grid"],
        max_shrink=config["max_shrink"],
    )
    for name, recorded in case["outputs"].items():
        shaped = bound.reshape(recorded["shape"])
        yield name, fingerprint_error(shaped, recorded), 1e-5


def build_llama_layer(config: Case) -> tuple[nn.Module, Any]:
    """transformers' Llama block of a case, and its rotary embedding."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    sizes = LlamaConfig(
        hidden_size=config["hidden"],
        intermediate_size=config["inter"],
        num_attention_heads=config["heads"],
        rms_norm_eps=config["rms_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": float(config["rope_theta"])},
    )
    sizes._attn_implementation = "eager"
    return LlamaDecoderLayer(sizes, 0).eval(), LlamaRotaryEmbedding(sizes)


def _awq_scale(case: Case) -> Iterator[Part]:
    config = case["config"]
    values = tensors(case)
    layer, rotary = build_llama_layer(config)
    x = _outliers(values.pop("layer.x"), 5, 16, 6)
    state = {name.removeprefix("layer."): value for name, value in values.items()}
    layer.load_state_dict(state)
    length = config["seq"]
    mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
    arguments = {
        "attention_mask": mask,
        "position_embeddings": rotary(x, torch.arange(length)[None]),
    }
    stream = BlockStream([x], [arguments])
    with torch.no_grad():
        yield from _awq_outputs(case, layer, stream, _awq_rule(config))


def _awq_outputs(
    case: Case, layer: nn.Module, stream: BlockStream, rule: GridRule
) -> Iterator[Part]:
    out = call_block(layer, stream.hidden[0], stream.arguments[0])
    recorded = case["outputs"]
    yield "layer_out", fingerprint_error(out, recorded["layer_out"]), 1e-5
    found = awq.scale_block(layer, stream, rule)
    yield "groups", float(len(found) != len(recorded["scales"])), 0
    for theirs, (group, scale) in zip(recorded["scales"], found.items(), strict=True):
        names = group.before == theirs["prev"] and list(group.layers) == theirs["layers"]
        yield f"layers of {theirs['prev']}", float(not names), 0
        yield f"scale of {theirs['prev']}", fingerprint_error(scale, theirs["scale"]), 1e-5
    if unknown := set(recorded) - {"layer_out", "scales"}:
        raise ValueError(f"no reader for {sorted(unknown)}")


def _factors(config: Case) -> list[float]:
    return ptq4vit.candidates(config["alpha"], config["beta"], config["candidates"])


def _ptq4vit_linear(case: Case) -> Iterator[Part]:
    config = case["config"]
    values = tensors(case)
    x = _outliers(values["ptq.x"], 5, 16, 3)
    if config["post_gelu"]:
        x = F.gelu(x)
    weight, bias, bits = values["ptq.weight"], values["ptq.bias"], config["bits"]
    found = ptq4vit.search_linear(
        x,
        weight,
        values["ptq.grad"],
        bits=bits,
        row_chunks=config["row_chunks"],
        post_gelu=config["post_gelu"],
        factors=_factors(config),
        rounds=config["rounds"],
    )
    on_input = ptq4vit.twin_gelu if config["post_gelu"] else ptq4vit.uniform
    near = on_input(x, found.inputs, bits)
    chunks = zip(weight.chunk(config["row_chunks"]), found.weight, strict=True)
    new = torch.cat([ptq4vit.uniform(chunk, interval, bits) for chunk, interval in chunks])
    ours = {
        "w_interval": found.weight,
        "a_interval": found.inputs.reshape(1),
        "a_neg_interval": ptq4vit.GELU_MINIMUM / 2 ** (bits - 1),
        "x_quant": near,
        "out": F.linear(near, new, bias),
    }
    yield from compare(case, ours)


def _ptq4vit_softmax(case: Case) -> Iterator[Part]:
    config = case["config"]
    values = tensors(case)
    p = (2 * values["ptq.scores"]).softmax(-1)
    v, bits = values["ptq.v"], config["bits"]
    split, intervals = ptq4vit.search_softmax_matmul(
        p,
        v,
        values["ptq.agrad"],
        bits=bits,
        factors=_factors(config),
        powers=config["split_powers"],
    )
    near = ptq4vit.twin_softmax(p, split, bits)
    ours = {
        "split": split.item(),
        "v_interval": intervals,
        "p_quant": near,
        "out": near @ ptq4vit.uniform(v, intervals[:, None, None], bits),
    }
    yield from compare(case, ours)


def _fqvit(case: Case) -> Iterator[Part]:
    config = case["config"]
    if config["ptf_bits"] != 8:
        raise ValueError("the power-of-two factor has 8 bits")
    values = tensors(case)
    scores = 4 * values["fq.scores"]
    x = _outliers(_outliers(values["fq.x"], 5, 16, 9), 3, 8, 0.2)
    bits = config["attn_bits"]
    p = scores.softmax(-1)
    codes, beyond = vit_grids.log2_codes(p, bits)
    factor = vit_grids.power_of_two_factor(x)
    scale = scores.abs().max() / (2 ** (config["score_bits"] - 1) - 1)
    whole = (scores / scale).round().clamp(-128, 127) * scale
    integer = vit_grids.integer_softmax(whole, scale, bits)
    ours = {
        "log2_codes": codes,
        "log2_dequant": vit_grids.log2_softmax(p, bits),
        "flushed": int(beyond.sum()),
        "ptf_scale": factor.scale,
        "ptf_alpha": factor.alpha,
        "ptf_zero_point": factor.zero.item(),
        "int_softmax": integer,
        "int_softmax_zeros": int((integer == 0).sum()),
    }
    counts = ("flushed", "ptf_alpha", "ptf_zero_point", "int_softmax_zeros")
    yield from compare(case, ours, exact=counts)


def _repq(case: Case) -> Iterator[Part]:
    config = case["config"]
    bits = config["bits"]
    values = {name.removeprefix("repq."): value for name, value in tensors(case).items()}
    p = (4 * values["scores"]).softmax(-1)
    delta = vit_grids.log_sqrt2_delta(p, bits)
    near = vit_grids.log_sqrt2_softmax(p, delta, bits)
    gamma, beta = values["norm.weight"], values["norm.bias"]
    gamma[3::8] *= 6
    weight, bias = values["fc.weight"], values["fc.bias"]

    def norm(gamma: Tensor, beta: Tensor) -> Tensor:
        return F.layer_norm(values["x"], gamma.shape, gamma, beta, config["layer_norm_eps"])

    made = vit_grids.reparameterise(norm(gamma, beta), gamma, beta, weight, bias, bits)
    x = norm(made.norm_weight, made.norm_bias)
    before, after = F.linear(norm(gamma, beta), weight, bias), F.linear(x, made.weight, made.bias)
    ours = {
        "delta": delta.item(),
        "p_quant": near,
        "p_zeros": int((near == 0).sum()),
        "scale": made.scale.item(),
        "zero_point": made.zero.item(),
        "norm_weight": made.norm_weight,
        "norm_bias": made.norm_bias,
        "fc_weight": made.weight,
        "fc_bias": made.bias,
        "max_change_of_output": (after - before).abs().max(),
        "x_quant": vit_grids.quantize_asymmetric(x, made.scale, made.zero, bits),
    }
    yield from compare(case, ours, exact=("p_zeros",))


KINDS: Mapping[str, Callable[[Case], Iterable[Part]]] = {
    "gptq": _gptq,
    "rtn_mse": _rtn_mse,
    "smoothquant": _smoothquant,
    "awq_pseudo_quant": _awq_pseudo_quant,
    "awq_clip": _awq_clip,
    "awq_scale": _awq_scale,
    "ptq4vit_linear": _ptq4vit_linear,
    "ptq4vit_softmax": _ptq4vit_softmax,
    "fqvit": _fqvit,
    "repq": _repq,
}
