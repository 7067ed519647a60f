"""CFP: thresholds against a brute-force search, planted outliers, an unchanged function."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers

from cbq.adapters import scalable_pairs
from cbq.cfp import RULES, activation_scale, find_outliers, truncate_weight
from cbq.rotation import rotate
from cbq.settings import preset
from cbq.start import observe, scale_channels
from papers_shared.language_models import capture_inputs, find_blocks, tiny_llama


def brute_force(values, rule):
    """The largest M over all splits, as the definition has it."""
    low, high = (torch.quantile(values, q) for q in (rule.low, rule.high))
    o = values[values > high + rule.lam1 * (high - low)].sort().values
    best, kept = -float("inf"), None
    for i in range(len(o) - 1, 0, -1):
        gap = o[i] - o[i - 1]
        variance = o[:i].var() if i > 1 else 0.0
        m = (gap**2 if rule.squared else gap) - rule.lam2 * variance
        if m > best:
            best, kept = m, o[i - 1]
    return kept


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("seed", range(5))
def test_running_sums_find_the_split_that_a_search_finds(rule, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(200, generator=generator, dtype=torch.float64).abs() ** 3
    found = find_outliers(values, rule)
    assert found.threshold == pytest.approx(brute_force(values, rule).item(), rel=1e-12)
    assert found.count == int((values > found.threshold).sum())


def test_no_candidate_keeps_all_and_one_is_an_outlier() -> None:
    even = torch.linspace(0, 1, 11)
    assert find_outliers(even).threshold == 1
    one = find_outliers(torch.cat([even, torch.tensor([9.0])]))
    assert (one.threshold, one.candidates, one.count) == (1, 1, 1)
    with pytest.raises(ValueError, match="no values"):
        find_outliers(even[:0])


@pytest.mark.parametrize("per_row", [False, True])
def test_truncation_clips_exactly_what_lies_above_the_threshold(per_row) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    weight[2, 5], weight[4, 7] = 40.0, -50.0
    clipped, count = truncate_weight(weight, per_row=per_row)
    changed = (clipped != weight).nonzero().tolist()
    assert [2, 5] in changed
    assert [4, 7] in changed
    assert len(changed) == count
    assert clipped.abs().max() < 5


def test_a_channel_is_scaled_only_where_it_is_an_outlier_and_larger_side_counts() -> None:
    largest, smallest = torch.linspace(1, 2, 50), -torch.linspace(1, 2, 50)
    largest[7], smallest[7] = 8.0, -32.0
    scale = activation_scale(largest, smallest)
    assert (scale != 1).nonzero().flatten().tolist() == [7]
    assert scale[7].item() == pytest.approx(4.0)  # (32 / 2) ** 0.5, not (8 / 2) ** 0.5


def test_planted_outliers_are_found_and_the_float_function_stays() -> None:
    model = tiny_llama(layers=1)
    block = find_blocks(model)[0]
    tokens = torch.randint(3, 97, (2, 16), generator=torch.Generator().manual_seed(0))
    stream = capture_inputs(model, list(tokens[:, None]))
    planted = [3, 17, 40]
    with torch.no_grad():
        block.input_layernorm.weight[planted] *= 30
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(block.self_attn, name).weight[:, planted] /= 30
    arguments = stream.arguments[0]
    options = {"hessians": False, "device": torch.device("cpu")}
    with torch.no_grad():
        statistics, before = observe(block, stream.hidden, arguments, **options)
        old = copy.deepcopy(block.input_layernorm.weight)
        squares = statistics.squares["self_attn.q_proj"].clone()
        scale_channels(block, statistics, preset("paper"))
        again, after = observe(block, stream.hidden, arguments, **options)
    scaled = (block.input_layernorm.weight != old).nonzero().flatten().tolist()
    assert scaled == planted
    assert (torch.cat(after) - torch.cat(before)).abs().max() < 1e-5 * torch.cat(before).abs().max()
    assert not torch.equal(squares, statistics.squares["self_attn.q_proj"])
    torch.testing.assert_close(
        statistics.squares["self_attn.q_proj"], again.squares["self_attn.q_proj"]
    )


def test_grouped_queries_leave_the_output_projection_alone() -> None:
    (block,) = find_blocks(tiny_llama(layers=1))
    assert [reader for _, _, reader in scalable_pairs(block)] == [
        "self_attn.q_proj",
        "mlp.gate_proj",
        "mlp.down_proj",
    ]


def gemma_and_stablelm() -> list[Any]:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 97, "pad_token_id": 0}
    return [
        transformers.GemmaForCausalLM(transformers.GemmaConfig(**sizes, **more, head_dim=16)),
        transformers.StableLmForCausalLM(transformers.StableLmConfig(**sizes, **more)),
    ]


def test_norms_that_cannot_be_folded_are_refused_before_anything_changes() -> None:
    gemma, stablelm = gemma_and_stablelm()
    with pytest.raises(ValueError, match=r"more than its weight.*--cfp none or weights"):
        scalable_pairs(find_blocks(gemma)[0])
    for model, why in ((gemma, "more than its weight"), (stablelm, "LayerNorm is no RMSNorm")):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=why):
            rotate(model)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert scalable_pairs(find_blocks(stablelm)[0])  # a LayerNorm's weight and bias can be scaled
