"""Early exit and speculative sampling: nothing changes that should not, and laws are kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from papers_shared.language_models import tiny_llama
from transformer_compression import compress
from transformer_compression.distill.language import student_of
from transformer_compression.others.early_exit import apply_early_exit
from transformer_compression.others.speculative import judge, speculative_sample
from transformer_compression.prune.layers import remove_layers


def tokens(length: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 97, (1, length), generator=torch.Generator().manual_seed(seed))


def greedy(model: Any, x: torch.Tensor, count: int = 6) -> torch.Tensor:
    mask = torch.ones_like(x)
    return model.generate(x, attention_mask=mask, max_new_tokens=count, do_sample=False)


def test_no_token_leaves_where_the_threshold_cannot_be_reached() -> None:
    x = tokens()
    wanted = greedy(tiny_llama(layers=4), x)
    model = tiny_llama(layers=4)
    state = apply_early_exit(model, threshold=1.0)
    assert torch.equal(greedy(model, x), wanted)
    assert state.mean_depth() == 4


def test_a_token_that_leaves_has_the_shorter_models_answer() -> None:
    x = tokens(1)
    short = tiny_llama(layers=4)
    remove_layers(short, [2, 3])
    model = tiny_llama(layers=4)
    state = apply_early_exit(model, threshold=0.0, checks=[2])
    torch.testing.assert_close(model(x).logits, short(x).logits)
    assert state.mean_depth() == 2
    torch.testing.assert_close(model(tokens(5)).logits, tiny_llama(layers=4)(tokens(5)).logits)


def test_skipped_layers_fill_their_caches() -> None:
    from transformers import DynamicCache

    model = tiny_llama(layers=4)
    apply_early_exit(model, threshold=0.0, checks=[1])
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        for token in tokens(5)[0]:
            model(token.view(1, 1), cache=cache, use_cache=True)
    assert [layer.keys.shape[2] for layer in cache.layers] == [5] * 4
    with pytest.raises(ValueError, match="expected numbers of 1 to 3"):
        apply_early_exit(tiny_llama(layers=4), checks=[4])


@pytest.mark.parametrize("kind", ["OPT", "Qwen3"])
def test_early_exit_refuses_models_of_another_kind(kind: str) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "vocab_size": 97}
    more = {"word_embed_proj_dim": 32, "ffn_dim": 48} if kind == "OPT" else {"head_dim": 16}
    config = getattr(transformers, f"{kind}Config")(**sizes, **more)
    with pytest.raises(ValueError, match="knows Llama-like models"):
        apply_early_exit(getattr(transformers, f"{kind}ForCausalLM")(config))


def test_what_is_accepted_or_replaced_has_the_targets_law() -> None:
    draw = torch.Generator().manual_seed(0)
    q = torch.tensor([[0.7, 0.1, 0.1, 0.1]])
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]])
    counts, accepted, trials = torch.zeros(4), 0, 4000
    for _ in range(trials):
        proposed = torch.multinomial(q[0], 1, generator=draw)
        verdict = judge(proposed, q, p, draw)
        counts[verdict.tokens[0]] += 1
        accepted += verdict.accepted
    expected = trials * p[0]
    chi_square = ((counts - expected).square() / expected).sum()
    assert chi_square < 16.3  # 3 degrees of freedom, one in a thousand
    assert accepted / trials == pytest.approx(torch.minimum(p[0], q[0]).sum().item(), abs=0.03)


def test_a_draft_equal_to_the_target_is_always_accepted() -> None:
    model = tiny_llama()
    made, share = speculative_sample(model, model, tokens(), count=9, proposals=3, seed=1)
    assert share == 1
    assert made.shape[1] >= 21
    again, _ = speculative_sample(model, model, tokens(), count=9, proposals=3, seed=1)
    assert torch.equal(made, again)
    _, less = speculative_sample(model, student_of(model), tokens(), count=9, seed=1)
    assert less <= 1


def test_greedy_answers_with_a_draft_are_the_models_own() -> None:
    x = tokens()
    wanted = greedy(tiny_llama(), x, 8)
    model, report = compress(tiny_llama(), "speculative", every=2)
    assert torch.equal(greedy(model, x, 8), wanted)
    assert report.bytes == report.bytes_before
