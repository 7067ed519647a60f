"""Quantization of whole models: every method, combinations, what is stored."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from papers_shared.language_models import block_linears, find_blocks, tiny_llama
from papers_shared.quantization import (
    FakeQuantLinear,
    GridRule,
    Hessian,
    load_gptq,
    round_to_nearest,
)
from transformer_compression import compress
from transformer_compression.compressing import compress_in_turn
from transformer_compression.others.low_rank import low_rank_factors, rank_for
from transformer_compression.prune.weights import Pattern, check_pattern
from transformer_compression.quantize import ptq4vit, smooth
from transformer_compression.quantize.nf4 import LEVELS, nf4
from transformer_compression.quantize.tuning import LearnedClipping, SignedRounding
from transformer_compression.storage import export, load, save
from transformer_compression.vision.vit import build_vit

W3 = {"bits": 3}
W4A4 = {"bits": 4, "search": "weighted", "activation_bits": 4, "attention": True}
LANGUAGE: list[tuple[str, dict[str, Any]]] = [
    ("rtn", W3),
    ("gptq", W3),
    ("awq", W3),
    ("lwc", {**W3, "steps": 4}),
    ("autoround", {**W3, "steps": 4}),
    ("awq", {**W4A4, "clip": False}),
    ("lwc", {**W4A4, "steps": 4}),
    ("autoround", {**W4A4, "steps": 4}),
    ("lsq", {**W3, "steps": 2}),
    ("nf4", {}),
    ("smoothquant", {}),
    ("low_rank", {"ratio": 0.7}),
    ("lsq", {**W3, "steps": 2, "activation_bits": 6}),
]
LOW_RANK: tuple[str, dict[str, Any]] = ("low_rank", {"ratio": 0.7})
CHAINS: list[list[tuple[str, dict[str, Any]]]] = [
    [LOW_RANK, ("layer_drop", {"count": 1, "criterion": "last"})],
    [("llm_pruner", {"layers": "1-1", "ratio": 0.5}), LOW_RANK],
    [LOW_RANK, ("low_rank", {"ratio": 0.9})],
    [LOW_RANK, ("lsq", {"steps": 1, "activation_bits": 6})],
]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama(layers=2)


@pytest.fixture(scope="module")
def batches() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(97, (1, 48), generator=draw) for _ in range(4)]


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(tokens).logits


def distance(model: Any, other: Any, batches: list[torch.Tensor]) -> float:
    return sum((logits(model, b) - logits(other, b)).square().mean().item() for b in batches)


@pytest.mark.parametrize(("method", "options"), LANGUAGE, ids=lambda v: str(v))
def test_a_compressed_model_reloads_with_the_same_outputs(
    tmp_path: Path, model: Any, batches: list, method: str, options: dict
) -> None:
    made, report = compress(copy.deepcopy(model), method, batches, **options)
    assert distance(made, model, batches) > 0
    assert report.bytes < report.bytes_before
    save(made, report, tmp_path)
    again = load(tmp_path).model
    assert all(torch.equal(logits(again, b), logits(made, b)) for b in batches)


@pytest.mark.parametrize("steps", CHAINS, ids=lambda steps: " ".join(name for name, _ in steps))
def test_methods_in_turn_reload_with_the_same_outputs(
    tmp_path: Path, model: Any, batches: list, steps: list
) -> None:
    made, report = compress_in_turn(copy.deepcopy(model), steps, batches)
    save(made, report, tmp_path)
    again = load(tmp_path).model
    assert all(torch.equal(logits(again, b), logits(made, b)) for b in batches)


def test_gptq_loses_less_than_rounding_and_searched_scales_less_than_full_ranges(
    model: Any, batches: list
) -> None:
    lost = {
        name: distance(compress(copy.deepcopy(model), name, batches, **o)[0], model, batches)
        for name, o in (("rtn", W3), ("gptq", W3))
    }
    plain, _ = compress(copy.deepcopy(model), "rtn", batches, bits=3, search="none")
    assert lost["gptq"] < lost["rtn"] < distance(plain, model, batches)


@pytest.mark.parametrize("method", ["lwc", "autoround"])
def test_learned_quantizers_lower_the_blocks_errors(model: Any, batches: list, method: str) -> None:
    _, report = compress(copy.deepcopy(model), method, batches[:1], bits=2, steps=30)
    losses = report.details[0]
    assert all(b < f for f, b in zip(losses.first, losses.best, strict=True))


@pytest.mark.parametrize("method", ["lwc", "autoround"])
def test_quantized_inputs_are_tuned_for(model: Any, batches: list, method: str) -> None:
    options = {"bits": 4, "attention": True, "steps": 30}
    tuned, _ = compress(copy.deepcopy(model), method, batches, activation_bits=3, **options)
    weights, _ = compress(copy.deepcopy(model), method, batches, **options)
    smooth.quantize_inputs(weights, smooth.InputRule(3, "token_asymmetric", True))
    assert distance(tuned, model, batches) < distance(weights, model, batches)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", [LearnedClipping, SignedRounding])
def test_learned_ranges_begin_with_the_searched_grid(kind: Any, symmetric: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    weight, importance = torch.randn(8, 64, generator=draw), torch.rand(64, generator=draw)
    rule = GridRule(3, 32, symmetric, "portable", "weighted")
    quantizer = kind(weight, rule, importance)
    if kind is LearnedClipping:  # which begins a little within its range
        torch.nn.init.constant_(quantizer.upper, 100.0)
        torch.nn.init.constant_(quantizer.lower, 100.0)
    expected = round_to_nearest(weight, rule, importance)
    found = quantizer.harden()
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.grid.scale, expected.grid.scale)


def test_autoround_moves_both_ends_of_a_range() -> None:
    draw = torch.Generator().manual_seed(0)
    quantizer = SignedRounding(torch.randn(8, 64, generator=draw), GridRule(2, search="none"))
    ends = [quantizer.shrink_low, quantizer.shrink_high]
    gradients = torch.autograd.grad((quantizer() - quantizer.weight).square().sum(), ends)
    assert all((gradient > 0).all() for gradient in gradients)  # 2 bits want less than the range


def test_smoothing_alone_changes_nothing_and_flattens_outliers(model: Any, batches: list) -> None:
    from transformer_compression.core import Data

    smoothed = copy.deepcopy(model)
    with torch.no_grad():
        for block in smoothed.model.layers:  # plant outliers: the function stays
            block.input_layernorm.weight[3] *= 30
            for name in ("q_proj", "k_proj", "v_proj"):
                getattr(block.self_attn, name).weight[:, 3] /= 30
    planted = copy.deepcopy(smoothed)
    smooth.smooth_model(smoothed, Data(batches), 0.5)
    assert distance(smoothed, planted, batches) < 1e-9
    norm = smoothed.model.layers[0].input_layernorm.weight
    assert norm.abs().max() < 0.3 * planted.model.layers[0].input_layernorm.weight.abs().max()
    errors = [
        distance(
            compress(copy.deepcopy(planted), "smoothquant", batches, alpha=a)[0], planted, batches
        )
        for a in (0.0, 0.5)
    ]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("method", ["smoothquant", "awq"])
def test_a_model_whose_norms_add_to_their_weights_is_refused(method: str, batches: list) -> None:
    from transformers import GemmaConfig, GemmaForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}
    more = {"num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 97}
    with pytest.raises(ValueError, match="multiplies by more than its weight"):
        compress(GemmaForCausalLM(GemmaConfig(**sizes, **more)), method, batches)


def test_smoothquant_quantizes_inputs_on_the_fly(model: Any, batches: list) -> None:
    made, _ = compress(copy.deepcopy(model), "smoothquant", batches)
    layers = [m for block in find_blocks(made) for m in block_linears(block).values()]
    assert all(isinstance(layer, FakeQuantLinear) for layer in layers)


def test_pruned_then_quantized_keeps_its_pattern(model: Any, batches: list) -> None:
    steps = [("wanda_2_4", {}), ("gptq", {"bits": 4})]
    made, report = compress_in_turn(copy.deepcopy(model), steps, batches)
    for block in find_blocks(made):
        for linear in block_linears(block).values():
            assert check_pattern(linear.weight, Pattern.of("2:4"))
    assert report.methods == ["wanda_2_4", "gptq"]
    assert report.nonzero < 0.75 * report.parameters


@pytest.mark.parametrize("symmetric", [False, True])
def test_exports_reload_bit_equal(
    tmp_path: Path, model: Any, batches: list, symmetric: bool
) -> None:
    made, report = compress(
        copy.deepcopy(model), "gptq", batches, bits=4, group=32, symmetric=symmetric
    )
    export(made, report, tmp_path / "gptq", format="gptq_v2")
    state = made.state_dict()
    assert all(torch.equal(state[n], v) for n, v in load_gptq(tmp_path / "gptq").items())
    pytest.importorskip("compressed_tensors")
    export(made, report, tmp_path / "ct", format="compressed-tensors")
    for folder in (tmp_path / "gptq", tmp_path / "ct"):
        again = load(folder).model
        assert all(torch.equal(logits(again, b), logits(made, b)) for b in batches)
        save(again, report, tmp_path / "again")  # as an ordinary model
        again = load(tmp_path / "again").model
        assert all(torch.equal(logits(again, b), logits(made, b)) for b in batches)


def test_an_export_is_read_back_with_its_quantized_inputs(
    tmp_path: Path, model: Any, batches: list
) -> None:
    pytest.importorskip("compressed_tensors")
    made, report = compress(copy.deepcopy(model), "smoothquant", batches)
    export(made, report, tmp_path, format="compressed-tensors")
    again = load(tmp_path).model
    assert all(torch.equal(logits(again, b), logits(made, b)) for b in batches)


def test_layers_that_a_packed_format_cannot_say_are_not_exported(
    tmp_path: Path, model: Any, batches: list
) -> None:
    made, report = compress_in_turn(copy.deepcopy(model), [LOW_RANK, ("rtn", {})], batches)
    with pytest.raises(ValueError, match=r"stock layers alone.*low_rank"):
        export(made, report, tmp_path, format="compressed-tensors")


def test_what_has_no_codes_is_not_exported(tmp_path: Path, model: Any, batches: list) -> None:
    made, report = compress(copy.deepcopy(model), "nf4", batches)
    with pytest.raises(ValueError, match="leaves no codes"):
        export(made, report, tmp_path, format="gptq")


def test_nf4_moves_to_the_nearest_of_sixteen_levels() -> None:
    weight = torch.randn(8, 64)
    near, codes = nf4(weight, double=False)
    scale = weight.abs().amax(1, keepdim=True)
    levels = torch.tensor(LEVELS)
    assert torch.allclose(near, levels[codes.long()] * scale)
    every = (levels[None, None] * scale[..., None] - weight[..., None]).abs().amin(-1)
    assert torch.allclose((near - weight).abs(), every, atol=1e-6)
    assert near.abs().amax(1).allclose(scale[:, 0])


def test_scales_alone_can_be_trained(model: Any, batches: list) -> None:
    made, report = compress(
        copy.deepcopy(model), "lsq", batches, bits=4, steps=3, lr=1e-3, train="scales"
    )
    losses = report.details[0]["loss"]
    assert losses[-1] < losses[0]
    name, weight = next(iter(report.quantized.items()))
    before = model.get_submodule(name).weight
    again = (before / weight.grid.scale).round().clamp(-8, 7) + 8
    assert torch.equal(again, weight.codes.float())  # the weights have stayed
    assert torch.equal(made.get_submodule(name).weight, weight.dequantize())


def test_heads_of_low_rank_layers_are_not_pruned(model, batches) -> None:
    made, _ = compress_in_turn(copy.deepcopy(model), [LOW_RANK], batches)
    with pytest.raises(ValueError, match="prune first"):
        compress(made, "llm_pruner", batches)


def test_low_rank_is_the_best_for_the_outputs() -> None:
    x = torch.randn(2, 40, 24) * torch.linspace(0.1, 3, 24)
    weight = torch.randn(16, 24)
    hessian = Hessian(24)
    hessian.add(x)
    errors = []
    for moment in (None, hessian.value):
        a, b = low_rank_factors(weight, 6, moment)
        assert a.shape == (16, 6)
        assert b.shape == (6, 24)
        errors.append((x @ (a @ b - weight).T).square().mean().item())
    assert errors[1] < errors[0]
    assert rank_for(16, 24, 0.5) == int(0.5 * 16 * 24 / 40)
    full, rest = low_rank_factors(weight, 16, hessian.value)
    assert torch.allclose(full @ rest, weight, atol=1e-3)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ptq4vit", {"bits": 8}),
        ("fqvit", {"attention_bits": 8}),
        ("repq", {"bits": 8}),
        ("lsq", {"bits": 8, "activation_bits": 8, "steps": 1}),
    ],
)
def test_vision_quantizers_stay_near_and_reload(tmp_path: Path, method: str, options: dict) -> None:
    torch.manual_seed(0)
    model = build_vit(embed_dim=32, depth=1, num_heads=2).eval()
    pictures = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        float_logits = model(pictures)
    made, report = compress(copy.deepcopy(model), method, [pictures], **options)
    with torch.no_grad():
        ours = made(pictures)
    error = (ours - float_logits).norm() / float_logits.norm()
    assert error < (0.4 if method == "fqvit" else 0.2)  # powers of two for 1 / 65 are coarse
    assert report.bytes < 0.66 * report.bytes_before
    save(made, report, tmp_path)
    with torch.no_grad():
        assert torch.equal(load(tmp_path).model(pictures), ours)


def test_the_papers_softmax_form_takes_one_range_the_codes_form_adds_both() -> None:
    p = torch.tensor([0.9, 0.3, 0.01])
    code, paper = (ptq4vit.twin_softmax(p, 0.25, 8, form) for form in ("code", "paper"))
    assert torch.allclose(paper, p, atol=0.005)
    assert torch.allclose(code[:2], p[:2] + 0.25, atol=0.005)


def test_ptq4vit_without_gradients_falls_back_to_plain_errors() -> None:
    x, weight = torch.randn(1, 6, 8), torch.randn(4, 8)
    zero = ptq4vit.search_linear(x, weight, torch.zeros(1, 6, 4), bits=6)
    one = ptq4vit.search_linear(x, weight, torch.ones(1, 6, 4), bits=6)
    assert torch.equal(zero.weight, one.weight)
    assert zero.weight.item() > 0.3 * ptq4vit.first_interval(weight, 6)
