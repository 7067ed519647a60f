"""Heads, channels, layers: what goes, what is left, and that stock classes load it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from papers_shared.language_models import tiny_llama
from transformer_compression import compress
from transformer_compression.prune.layers import (
    angular_distance,
    block_influence,
    drop_layers,
    layer_scores,
    relative_magnitude,
    remove_layers,
)
from transformer_compression.prune.removal import load_pruned, remove_heads, save_pruned
from transformer_compression.prune.structured import least_squares, prune_structured


def tokens(seed: int = 0, count: int = 2) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 97, (2, 24), generator=draw) for _ in range(count)]


@pytest.mark.parametrize("criterion", ["taylor", "activation", "l2", "random"])
def test_heads_go_with_their_whole_group_and_stock_classes_load_the_rest(
    tmp_path: Any, criterion: Any
) -> None:
    from transformers import AutoModelForCausalLM

    model, report = prune_structured(tiny_llama(), tokens(), ratio=0.5, criterion=criterion)
    assert report.sizes == [[2, 1, 64]] * 3  # of 4 query heads, 2 key/value heads, 128 channels
    assert report.parameters[1] < report.parameters[0]
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    x = tokens()[0]
    assert torch.equal(model.eval()(x).logits, again(x).logits)
    assert again.generate(x[:1, :5], max_new_tokens=3, do_sample=False).shape == (1, 8)


def test_layers_of_different_sizes_reload_in_one_call(tmp_path: Any) -> None:
    model, report = prune_structured(tiny_llama(), tokens(), ratio=0.5, layers=[1])
    assert report.sizes == [[4, 2, 128], [2, 1, 64], [4, 2, 128]]
    assert "load_pruned" in report.reload
    save_pruned(model, tmp_path)
    again = load_pruned(tmp_path)
    x = tokens()[0]
    assert type(again).__module__.startswith("transformers.")
    assert torch.equal(model.eval()(x).logits, again(x).logits)
    assert again.generate(x[:1, :5], max_new_tokens=3, do_sample=False).shape == (1, 8)


def test_fewer_windows_than_samples_are_told() -> None:
    for samples, told in ((4, 0), (10, 1)):
        _, report = compress(tiny_llama(), "llm_pruner", tokens(), ratio=0.5, samples=samples)
        assert sum("4 samples, not 10" in note for note in report.notes) == told


def test_a_head_count_that_llama_refuses_comes_back_as_mistral(tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM

    # 64 channels, 4 heads, no grouped queries: three heads do not divide 64.
    model = tiny_llama(kv_heads=4)
    pruned, report = prune_structured(model, tokens(), ratio=0.25, mlp=False)
    assert report.sizes[0] == [3, 3, 128]
    assert pruned.config.model_type == "mistral"
    pruned.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    x = tokens()[0]
    assert torch.equal(model.eval()(x).logits, again(x).logits)  # the Llama that was cut in place


def test_a_head_that_adds_nothing_is_found_and_costs_nothing() -> None:
    model = tiny_llama()
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data[:, :32] = 0  # the first key/value head's two queries
    x = tokens()[0]
    before = model(x).logits
    pruned, report = prune_structured(model, tokens(), ratio=0.5, criterion="activation", mlp=False)
    assert report.heads == {0: [0], 1: [0], 2: [0]}
    torch.testing.assert_close(pruned(x).logits, before, atol=1e-5, rtol=1e-5)


def test_the_correction_reduces_the_error_of_what_is_left() -> None:
    draw = torch.Generator().manual_seed(0)
    mix = torch.randn(16, 16, generator=draw)
    x = torch.randn(200, 16, generator=draw) @ mix
    weight = torch.randn(8, 16, generator=draw)
    stay = list(range(12))
    fixed = least_squares(weight, x.T @ x, stay)
    exact = torch.linalg.lstsq(x[:, :12].double(), (x @ weight.T).double()).solution.T
    torch.testing.assert_close(fixed, exact.float(), atol=2e-2, rtol=2e-2)
    wanted = x @ weight.T
    plain = (x[:, stay] @ weight[:, stay].T - wanted).square().mean()
    assert (x[:, stay] @ fixed.T - wanted).square().mean() < 0.5 * plain


def test_structured_requests_that_cannot_be_met_say_why() -> None:
    with pytest.raises(ValueError, match="removes nothing"):
        prune_structured(tiny_llama(), tokens(), ratio=0.1, mlp=False)
    with pytest.raises(ValueError, match="no samples"):
        prune_structured(tiny_llama(), ratio=0.5)
    with pytest.raises(ValueError, match="not among the 3"):
        prune_structured(tiny_llama(), tokens(), layers=[7])
    with pytest.raises(ValueError, match="every head would go"):
        remove_heads(tiny_llama().model.layers[0].self_attn, [0, 1])
    with pytest.raises(ValueError, match="Llama-like"):
        prune_structured(torch.nn.Linear(2, 2), tokens())
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_pruned("no-such-folder")


def test_gradients_are_cleared_and_flags_restored() -> None:
    model = tiny_llama()
    model.requires_grad_(False)
    prune_structured(model, tokens(), ratio=0.5)
    assert all(
        p.grad is None and not p.requires_grad for p in model.model.embed_tokens.parameters()
    )


# --- layers --------------------------------------------------------------------------------------


def test_measures_of_a_layer_that_does_nothing_are_zero() -> None:
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    for measure in (block_influence, relative_magnitude, angular_distance):
        assert measure(x, x).item() == pytest.approx(0, abs=3e-4)
    assert block_influence(x, -x).item() == pytest.approx(2)
    assert angular_distance(x, -x).item() == pytest.approx(1, abs=3e-4)
    assert relative_magnitude(x, 2 * x).item() == pytest.approx(0.5)


def test_block_influence_is_that_of_the_hidden_states() -> None:
    model, batches = tiny_llama(), tokens()
    scores = layer_scores(model, batches)
    out = model(batches[0], output_hidden_states=True).hidden_states
    two = model(batches[1], output_hidden_states=True).hidden_states
    first = (block_influence(out[0], out[1]) + block_influence(two[0], two[1])) / 2
    assert scores[0] == pytest.approx(first.item(), rel=1e-4)
    assert len(scores) == 3
    assert len(layer_scores(model, batches, criterion="angular", count=2)) == 2


def test_a_layer_that_does_nothing_is_dropped_and_costs_nothing(tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_llama()
    idle = model.model.layers[1]
    idle.self_attn.o_proj.weight.data.zero_()
    idle.mlp.down_proj.weight.data.zero_()
    x = tokens()[0]
    before = model(x).logits
    model, report = drop_layers(model, tokens(), count=1)
    assert report.removed == [1]
    torch.testing.assert_close(model(x).logits, before)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(x).logits, model(x).logits)
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1]
    assert again.generate(x[:1, :5], max_new_tokens=3, do_sample=False).shape == (1, 8)


def test_dropping_by_angle_takes_neighbours_and_by_chance_depends_on_the_seed() -> None:
    _, report = drop_layers(tiny_llama(layers=4), tokens(), count=2, criterion="angular")
    assert report.removed[1] == report.removed[0] + 1
    drawn = {
        tuple(drop_layers(tiny_llama(layers=4), count=2, criterion="random", seed=s)[1].removed)
        for s in range(6)
    }
    assert len(drawn) > 1
    _, last = drop_layers(tiny_llama(layers=4), count=2, criterion="last")
    assert last.removed == [1, 2]


def test_layers_that_cannot_go_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 1 to 2"):
        drop_layers(tiny_llama(), tokens(), count=3)
    with pytest.raises(ValueError, match="not among"):
        remove_layers(tiny_llama(), [5])
    with pytest.raises(ValueError, match="no scores"):
        layer_scores(tiny_llama(), tokens(), criterion="random")
