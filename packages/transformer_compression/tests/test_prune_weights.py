"""Pruning of weights: counts, patterns, orderings, whole models, storage."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from papers_shared.language_models import tiny_llama
from papers_shared.quantization import GridRule, Hessian
from transformer_compression.prune.semi_structured import (
    device_support,
    pack_2_4,
    sparse_bytes,
    to_semi_structured,
    unpack_2_4,
)
from transformer_compression.prune.sequential import prune_weights
from transformer_compression.prune.sparsegpt import sparsegpt
from transformer_compression.prune.weights import (
    InputNorms,
    Pattern,
    check_pattern,
    global_magnitude_keep,
    magnitude_keep,
    wanda_keep,
)


def layer(seed: int = 0, rows: int = 32, inputs: int = 64) -> tuple[Tensor, Tensor]:
    """A matrix, and inputs that depend on each other and have strong channels."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, inputs, generator=draw)
    mix = torch.randn(inputs, inputs, generator=draw) / 8 + torch.eye(inputs)
    x = torch.randn(4, 50, inputs, generator=draw) @ mix
    x[..., 3::16] *= 5
    return weight, x


def tokens(seed: int = 0, count: int = 2) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 97, (2, 24), generator=draw) for _ in range(count)]


@pytest.mark.parametrize(
    ("text", "pattern"),
    [("0.5", Pattern(0.5)), ("2:4", Pattern(0.5, 2, 4)), ("4:8", Pattern(0.5, 4, 8))],
)
def test_a_pattern_is_read_and_written(text: str, pattern: Pattern) -> None:
    assert Pattern.of(text) == pattern
    assert str(pattern) == text


@pytest.mark.parametrize("text", ["4:4", "1.5", "half", "2:", "-0.1"])
def test_a_pattern_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Pattern.of(text)


def test_magnitude_removes_the_threshold_too() -> None:
    weight, _ = layer()
    assert (~magnitude_keep(weight, Pattern(0.5))).sum() == weight.numel() // 2 + 1
    assert magnitude_keep(weight, Pattern(0.0)).all()


def test_one_threshold_for_all_takes_more_from_small_weights() -> None:
    weight, _ = layer()
    small, large = global_magnitude_keep([weight * 0.1, weight], 0.5)
    assert small.sum() < large.sum()
    assert (~small).sum() + (~large).sum() == weight.numel() + 1


def test_wanda_removes_as_much_from_every_row() -> None:
    weight, x = layer()
    norms = InputNorms(64)
    for sequence in x:
        norms.add(sequence)
    torch.testing.assert_close(norms.value, x.square().sum(1).mean(0))
    keep = wanda_keep(weight, norms.value, Pattern(0.25))
    assert ((~keep).sum(1) == 16).all()


def test_wandas_variant_reaches_the_sparsity_with_unequal_rows() -> None:
    weight, x = layer(rows=64)
    weight[::2] = weight[::2] ** 3
    keep = wanda_keep(weight, x.square().sum((0, 1)), Pattern(0.5), equal_rows=False)
    assert abs((~keep).float().mean().item() - 0.5) < 2e-3
    assert len(set((~keep).sum(1).tolist())) > 1


@pytest.mark.parametrize("pattern", ["0.5", "2:4", "4:8"])
def test_errors_fall_from_magnitude_to_wanda_to_sparsegpt(pattern: str) -> None:
    weight, x = layer(rows=64)
    what = Pattern.of(pattern)
    hessian = Hessian(64)
    hessian.add(x)
    made = sparsegpt(weight, hessian.value, what, block=32)

    def error(new: Tensor) -> float:
        return (x @ (new - weight).T).square().mean().item()

    by_magnitude = error(weight * magnitude_keep(weight, what))
    by_wanda = error(weight * wanda_keep(weight, x.square().sum((0, 1)), what))
    assert error(made.weight) < 0.8 * by_wanda < 0.8 * by_magnitude
    assert check_pattern(made.weight, what)


def test_sparsegpt_serves_dead_inputs_and_few_tokens() -> None:
    weight, x = layer()
    x[..., 7] = 0
    hessian = Hessian(64)
    hessian.add(x[:1, :5])  # rank 5 of 64
    made = sparsegpt(weight, hessian.value, Pattern(0.5, 2, 4), damping=1e-12)
    assert torch.isfinite(made.weight).all()
    assert (made.weight[:, 7] == 0).all()
    assert made.damping > 1e-12


def test_pruned_and_quantized_at_once_keeps_zeros_and_codes_agree() -> None:
    weight, x = layer()
    hessian = Hessian(64)
    hessian.add(x)
    rule = GridRule(4, -1, False, rule="gptq", search="none")
    made = sparsegpt(weight, hessian.value, Pattern(0.5, 2, 4), grid=rule)
    assert made.quantized is not None
    torch.testing.assert_close(made.quantized.dequantize(), made.weight)
    assert (made.weight[~made.keep] == 0).all()
    with pytest.raises(ValueError, match="one group a row"):
        sparsegpt(weight, hessian.value, Pattern(), grid=GridRule(4, 16))


@pytest.mark.parametrize("method", ["magnitude", "global_magnitude", "wanda", "sparsegpt"])
def test_a_model_is_pruned_in_its_blocks_alone(method: Any) -> None:
    model = tiny_llama()
    before = copy.deepcopy(model.state_dict())
    report = prune_weights(model, tokens(), method=method, pattern=0.5, block=32)
    assert abs(report.sparsity - 0.5) < 0.01
    for name, value in model.state_dict().items():
        pruned = "_proj" in name
        assert torch.equal(value, before[name]) != pruned, name
    assert set(report.layer_bytes) == {n.removesuffix(".weight") for n in before if "_proj" in n}


def test_later_blocks_see_the_pruned_ones() -> None:
    model = tiny_llama()
    prune_weights(model, tokens(), method="wanda", pattern="2:4")
    # A dense copy whose last block is pruned by the dense stream has another mask.
    other = tiny_llama()
    norms: dict[str, InputNorms] = {}
    linear = other.model.layers[2].mlp.down_proj
    norms["x"] = InputNorms(linear.in_features)
    handle = linear.register_forward_pre_hook(lambda _m, a: norms["x"].add(a[0]))
    for batch in tokens():
        other(batch)
    handle.remove()
    dense = wanda_keep(linear.weight, norms["x"].value, Pattern(0.5, 2, 4))
    assert not torch.equal(dense, model.model.layers[2].mlp.down_proj.weight != 0)


def test_the_report_says_that_weights_are_2_4_and_that_a_cpu_gains_nothing() -> None:
    model = tiny_llama()
    report = prune_weights(model, tokens(), method="sparsegpt", pattern="2:4", block=32)
    assert report.pattern_holds
    assert report.bytes == report.dense_bytes * 9 / 16
    assert not device_support("cpu").supported
    assert "CUDA" in report.device
    with pytest.raises(ValueError, match="2:4 stays dense on cpu"):
        to_semi_structured(model)


def test_what_was_pruned_reloads_to_the_same_outputs(tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_llama()
    prune_weights(model, tokens(), method="wanda", pattern="2:4")
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    x = tokens()[0]
    assert torch.equal(model(x).logits, again(x).logits)


def test_2_4_storage_is_two_values_and_four_bits() -> None:
    weight, _ = layer()
    pruned = weight * magnitude_keep(weight, Pattern(0.5, 2, 4))
    pruned[0, :4] = torch.tensor([0, 0, 0, 5.0])  # more zeros than needed
    values, places = pack_2_4(pruned)
    assert torch.equal(unpack_2_4(values, places), pruned)
    assert 2 * values.numel() + places.numel() == sparse_bytes(pruned, Pattern(0.5, 2, 4))
    with pytest.raises(ValueError, match="not 2:4"):
        pack_2_4(weight)


def test_bytes_follow_the_rule_of_the_report() -> None:
    weight = torch.ones(8, 16)
    weight[:, 4:] = 0
    assert sparse_bytes(weight, Pattern(0.75)) == 128 / 8 + 2 * 32
    assert sparse_bytes(weight, Pattern(0.5, 2, 4), bits=8) == 128 * 5 / 8


def test_requests_that_cannot_be_met_say_why() -> None:
    model = tiny_llama()
    with pytest.raises(ValueError, match="no calibration batches"):
        prune_weights(model, method="wanda")
    with pytest.raises(ValueError, match="expected one of"):
        prune_weights(model, tokens(), method="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="do not divide into groups of 7"):
        prune_weights(model, method="magnitude", pattern="3:7")
    with pytest.raises(ValueError, match="sparsegpt's"):
        prune_weights(model, tokens(), method="wanda", grid=GridRule(4))
