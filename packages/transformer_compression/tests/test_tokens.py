"""Tokens of vision transformers, and keys of a language model's cache."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from papers_shared.complexity import count_macs
from papers_shared.language_models import tiny_llama
from transformer_compression.prune.context import H2OCache, apply_h2o
from transformer_compression.prune.tokens import apply_evit, evit_macs
from transformer_compression.prune.tome import (
    apply_tome,
    bipartite_matching,
    merge_schedule,
    merge_weighted,
    random_matching,
    restore_blocks,
    tokens_after,
    tome_macs,
)
from transformer_compression.prune.vit import (
    fit_to,
    prune_vit_structured,
    prune_vit_weights,
)
from transformer_compression.vision.vit import build_vit

SMALL = {"embed_dim": 32, "depth": 4, "num_heads": 4, "image_size": 16}


@pytest.fixture
def vit() -> Any:
    torch.manual_seed(0)
    return build_vit(**SMALL).eval()


def pictures(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_merging_keeps_the_weighted_mean_and_the_class_token() -> None:
    draw = torch.Generator().manual_seed(0)
    x, metric = torch.randn(2, 17, 8, generator=draw), torch.randn(2, 17, 4, generator=draw)
    matching = bipartite_matching(metric, 5)
    assert matching is not None
    size = torch.ones(2, 17, 1)
    merged, sizes = merge_weighted(matching, x, size)
    assert merged.shape == (2, 12, 8)
    torch.testing.assert_close((merged * sizes).sum(1), x.sum(1))
    assert (sizes.sum(1) == 17).all()
    torch.testing.assert_close(merged[:, 0], x[:, 0])
    torch.testing.assert_close(matching.unmerge(merged)[:, 0], x[:, 0])


def test_unmerge_gives_merged_tokens_what_they_went_into() -> None:
    x = torch.randn(1, 9, 6, generator=torch.Generator().manual_seed(1))
    matching = bipartite_matching(x, 2)
    assert matching is not None
    back = matching.unmerge(matching.merge(x))
    changed = (back - x).abs().amax(-1)[0] > 1e-6
    assert changed.sum() <= 4  # two sources, and at most two targets


def test_with_a_distillation_token_the_paper_form_alone_undoes_the_order() -> None:
    x = torch.randn(1, 18, 6, generator=torch.Generator().manual_seed(2))
    for form, same in (("paper", True), ("code", False)):
        matching = bipartite_matching(x, 3, distill_token=True, form=form)  # type: ignore[arg-type]
        assert matching is not None
        merged = matching.merge(x)
        torch.testing.assert_close(merged[:, :2], x[:, :2])
        back = matching.unmerge(merged)
        assert torch.allclose(back[:, :2], x[:, :2]) == same


def test_alike_tokens_are_merged_first() -> None:
    metric = torch.eye(8)[None].repeat(1, 1, 1)
    metric[0, 4] = metric[0, 5]
    matching = bipartite_matching(metric, 1)
    assert matching is not None
    assert matching.source.item() * 2 == 4
    assert matching.target.item() * 2 + 1 == 5


def test_schedules() -> None:
    assert merge_schedule(3, 4) == [3, 3, 3, 3]
    assert merge_schedule((4, -1.0), 5) == [8, 6, 4, 2, 0]
    assert sum(merge_schedule((4, 0.5), 4)) <= 16
    assert merge_schedule([2, 1], 4) == [2, 1, 0, 0]
    assert tokens_after(197, [16] * 12) == [181, 165, 149, 133, 117, 101, 85, 69, 53, 37, 21, 11]
    for wrong in ((3, 2.0), [1] * 5):
        with pytest.raises(ValueError):
            merge_schedule(wrong, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("r", "giga"),
    [(0, (1.254, 4.599, 17.564)), (8, (0.924, 3.416, 13.104)), (13, (0.731, 2.703, 10.367))],
)
def test_macs_of_merging_are_the_sheets(r: int, giga: tuple[float, ...]) -> None:
    for width, wanted in zip((192, 384, 768), giga, strict=True):
        macs = tome_macs(width=width, depth=12, tokens=197, patch_inputs=768, classes=1000, r=r)
        assert macs / 1e9 == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize(
    ("keep", "giga"), [(0.9, 4.022), (0.8, 3.477), (0.7, 3.029), (0.6, 2.635), (0.5, 2.309)]
)
def test_macs_of_evit_are_the_sheets(keep: float, giga: float) -> None:
    macs = evit_macs(width=384, depth=12, tokens=197, patch_inputs=768, classes=1000, keep=keep)
    assert macs / 1e9 == pytest.approx(giga, abs=1e-3)


def test_merging_nothing_changes_nothing_and_can_be_undone(vit: Any) -> None:
    x = pictures()
    before = vit(x)
    torch.testing.assert_close(apply_tome(vit, 0)(x), before)
    assert not torch.allclose(apply_tome(vit, 3)(x), before)
    restore_blocks(vit)
    assert torch.equal(vit(x), before)
    torch.testing.assert_close(apply_evit(vit, 1.0)(x), before)


def test_counted_operations_follow_the_rule(vit: Any) -> None:
    dense = count_macs(vit, (1, 3, 16, 16), rule="flop_counter", device="cpu").total // 2
    sizes = {"width": 32, "depth": 4, "tokens": 17, "patch_inputs": 48, "classes": 10}
    assert dense == tome_macs(**sizes)
    apply_tome(vit, 2)
    merged = count_macs(vit, (1, 3, 16, 16), rule="flop_counter", device="cpu").total // 2
    # The counter also sees the matching's own products of keys.
    matching = sum((n + 1) // 2 * (n // 2) * 8 for n in (17, 15, 13, 11))
    assert merged == tome_macs(**sizes, r=2) + matching


def test_identical_patches_cost_nothing_when_merged(vit: Any) -> None:
    with torch.no_grad():
        vit.pos_embed[:, 1:] = 0
    x = torch.ones(2, 3, 16, 16)
    before = vit(x)
    torch.testing.assert_close(apply_tome(vit, 4)(x), before, atol=1e-5, rtol=1e-5)
    plain = apply_tome(vit, 4, proportional=False)(x)
    assert not torch.allclose(plain, before, atol=1e-5)


def test_drawn_pairs_depend_on_the_generator_and_spare_the_class_token() -> None:
    metric = torch.zeros(2, 17, 4)
    a, b = (random_matching(metric, 4, torch.Generator().manual_seed(s)) for s in (0, 1))
    assert a is not None
    assert b is not None
    assert not torch.equal(a.source, b.source)
    assert (a.source != 0).all()


def test_other_architectures_are_refused() -> None:
    with pytest.raises(ValueError, match="timm vision transformer"):
        apply_tome(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="keep is 0"):
        apply_evit(build_vit(**SMALL), 0)


# --- pruning of vision transformers --------------------------------------------------------------


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_a_vision_transformer_is_pruned_to_2_4(vit: Any, method: Any) -> None:
    report = prune_vit_weights(vit, [pictures()], method=method, pattern="2:4")
    assert report.pattern_holds
    assert report.sparsity >= 0.5
    assert report.weights == sum(p.numel() for n, p in vit.blocks.named_parameters() if p.ndim == 2)


def test_heads_and_channels_of_a_vision_transformer_go_for_good(vit: Any) -> None:
    report = prune_vit_structured(vit, [pictures(8)], ratio=0.5)
    assert all(len(gone) == 2 for gone in report.heads.values())
    assert all(len(gone) == 64 for gone in report.channels.values())
    assert vit.blocks[0].attn.qkv.weight.shape == (48, 32)
    again = fit_to(build_vit(**SMALL), copy.deepcopy(vit.state_dict())).eval()
    assert torch.equal(again(pictures()), vit(pictures()))


def test_a_correction_over_the_batches_lowers_the_error_of_the_output() -> None:
    errors = {}
    for correct in (True, False):
        torch.manual_seed(0)
        model = build_vit(**SMALL).eval()
        for p in model.parameters():
            p.data += 0.05 * torch.randn(
                p.shape, generator=torch.Generator().manual_seed(p.numel())
            )
        x = pictures(32)
        with torch.no_grad():
            before = model(x)
            prune_vit_structured(model, [x], ratio=0.5, correct=correct)
            errors[correct] = (model(x) - before).square().mean().item()
    assert errors[True] < errors[False]


# --- context -------------------------------------------------------------------------------------


def decoded(model: Any, x: torch.Tensor, prompt: int = 8) -> tuple[torch.Tensor, Any]:
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    parts = [x[:, :prompt], *x[:, prompt:].split(1, 1)]
    with torch.no_grad():
        return torch.cat([model(p, cache=cache, use_cache=True).logits for p in parts], 1), cache


def test_a_cache_within_its_budget_changes_nothing_and_beyond_it_stays_small() -> None:
    x = torch.randint(0, 97, (1, 24), generator=torch.Generator().manual_seed(0))
    model = tiny_llama()
    whole = model(x).logits
    torch.testing.assert_close(decoded(apply_h2o(model, heavy=12, recent=12), x)[0], whole)
    model = apply_h2o(tiny_llama(), heavy=3, recent=4)
    first, cache = decoded(model, x)
    assert all(layer.keys.shape[2] == 7 for layer in cache.layers)
    assert not torch.allclose(first, whole)
    assert torch.equal(first, decoded(model, x)[0])  # every cache begins anew
    torch.testing.assert_close(model(x, use_cache=False).logits, whole)
    assert model.generate(x[:, :10], max_new_tokens=4, do_sample=False).shape == (1, 14)


def test_the_last_keys_and_the_heavy_ones_stay() -> None:
    cache = H2OCache(heavy=1, recent=2)
    attention = torch.zeros(1, 1, 6)
    attention[0, 0, 2] = 1
    assert cache.update(attention).tolist() == [[2, 4, 5]]
    assert cache.positions.tolist() == [[2, 4, 5]]  # type: ignore[union-attr]
    cache.update(torch.tensor([[[0.0, 0.9, 0.0, 0.1]]]))
    assert cache.positions.tolist() == [[2, 5, 6]]  # type: ignore[union-attr]
    budget = H2OCache.for_prompt(100)
    assert (budget.heavy, budget.recent) == (10, 10)
    with pytest.raises(ValueError, match="expected heavy"):
        H2OCache(heavy=1, recent=0)
