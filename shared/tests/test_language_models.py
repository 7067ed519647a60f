"""Loading, windows, the walk block by block, perplexity and questions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers

from papers_shared.assets import AssetMissing
from papers_shared.language_models import (
    LAYOUTS,
    block_layout,
    block_linears,
    calibration_windows,
    capture_inputs,
    find_blocks,
    load_language_model,
    make_questions,
    observe_inputs,
    question_accuracy,
    run_block,
    tiny_llama,
    tokenize,
    walk_blocks,
    wikitext2,
)
from papers_shared.metrics.perplexity import perplexity


@pytest.fixture(scope="module")
def stories() -> tuple:
    try:
        return load_language_model("stories260k")
    except AssetMissing as missing:
        pytest.skip(str(missing))


def test_stories_writes_the_known_story(stories: tuple) -> None:
    model, tokenizer = stories
    assert sum(p.numel() for p in model.parameters()) == 260_032
    ids = model.generate(torch.tensor([[1]]), max_new_tokens=40, do_sample=False)[0].tolist()
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside"
    )
    text = "Once upon a time, Lily saw a naïve €."
    again = tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True)
    assert again == text


def test_the_walk_is_the_model() -> None:
    model = tiny_llama()
    batches = calibration_windows(torch.arange(90) % 97, count=3, length=16, seed=0, batch=2)
    with torch.no_grad():
        final = torch.cat([model.model(b).last_hidden_state for b in batches])
    seen = []
    for index, block, stream in walk_blocks(model, batches):
        seen.append(index)
        after = run_block(block, stream).hidden
    assert seen == [0, 1, 2]
    assert torch.equal(model.model.norm(torch.cat(after)), final)


def test_a_changed_block_changes_what_follows() -> None:
    model = tiny_llama()
    streams = []
    for index, block, stream in walk_blocks(model, [torch.arange(12)[None]]):
        streams.append(stream.hidden[0])
        if index == 0:
            for linear in block_linears(block).values():
                linear.weight.data.zero_()
    assert torch.equal(streams[1], streams[0])  # a block of zeros adds nothing


def test_observed_inputs_are_the_linears_inputs() -> None:
    model = tiny_llama(layers=1)
    stream = capture_inputs(model, [torch.arange(12)[None]])
    seen = {}
    block = find_blocks(model)[0]
    observe_inputs(block, stream, lambda name, x: seen.update({name: x}))
    assert set(seen) == set(block_linears(block))
    assert torch.equal(seen["self_attn.q_proj"], block.input_layernorm(stream.hidden[0]))
    assert not block.mlp.down_proj._forward_pre_hooks


def test_perplexity_of_a_model_that_knows_nothing_is_its_vocabulary() -> None:
    model = tiny_llama()
    model.model.embed_tokens.weight.data.zero_()  # tied: all logits 0
    result = perplexity(model, torch.arange(60), window=20, windows=2)
    assert result.value == pytest.approx(97, rel=1e-5)
    assert (result.windows, result.window) == (2, 20)
    with pytest.raises(ValueError, match="3 windows of 20"):
        perplexity(model, torch.arange(60), window=20, windows=4)
    with pytest.raises(ValueError, match="window=0"):
        perplexity(model, torch.arange(60), window=0)


def test_perplexity_is_the_shifted_cross_entropy() -> None:
    model = tiny_llama()
    ids = torch.randint(97, (64,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        losses = [model(w[None], labels=w[None]).loss.item() for w in ids.split(16)]
    expected = math.exp(sum(losses) / 4)
    assert perplexity(model, ids, window=16).value == pytest.approx(expected, rel=1e-5)


def tiny(kind: str, **options: Any) -> Any:
    """A model of another family, one block, random weights."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 97}
    common = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(**sizes, **more, **common, **options)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


OPT = {"word_embed_proj_dim": 32, "ffn_dim": 48, "max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        ("Gemma", {"head_dim": 16}, "multiplies by more than its weight"),
        ("Gemma2", {"head_dim": 16}, "also holds post_feedforward_layernorm"),
        ("BitNet", {}, "also holds mlp.ffn_sub_norm"),
        ("OPT", {**OPT, "do_layer_norm_before": False}, "norms behind its layers"),
        ("Olmo", {}, "has no weight"),
        ("Olmo2", {}, "no block of the Llama"),  # its post_attention_layernorm is another
        ("Phi", {}, "no block of the Llama"),  # attention and FFN read one norm
    ],
)
def test_blocks_into_which_no_scale_can_be_folded_are_refused(kind, options, why) -> None:
    (block,) = find_blocks(tiny(kind, **options))
    with pytest.raises(ValueError, match=why):
        block_layout(block)


@pytest.mark.parametrize(
    ("kind", "options", "layout"),
    [
        ("Qwen2", {}, "llama"),
        ("Qwen3", {}, "llama"),
        ("StableLm", {}, "llama"),
        ("OPT", OPT, "opt"),
    ],
)
@torch.no_grad()
def test_a_scale_moves_from_a_pair_to_its_readers(kind, options, layout) -> None:
    model = tiny(kind, **options)
    (block,) = find_blocks(model)
    assert block_layout(block) == layout
    ids = torch.arange(2, 34)[None]
    before = model(ids).logits
    for pair in LAYOUTS[layout]:
        source: Any = block.get_submodule(pair.before)
        scale = torch.linspace(0.5, 2, len(source.weight))
        for parameter in source.parameters():
            parameter.div_(scale.view(-1, *[1] * (parameter.ndim - 1)))
        for name in pair.linears:
            block.get_submodule(name).weight.mul_(scale)
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-5)


def test_draws_are_the_seeds() -> None:
    tokens = torch.arange(1000)
    one, same, other = (
        torch.cat(calibration_windows(tokens, count=4, length=32, seed=s)) for s in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert (one.diff(dim=1) == 1).all()
    with pytest.raises(ValueError, match="20 tokens"):
        calibration_windows(tokens[:20], count=1, length=32, seed=0)
    with pytest.raises(ValueError, match="0 windows"):
        calibration_windows(tokens, count=0, length=32, seed=0)


def test_questions_come_from_one_article_and_are_answered(stories: tuple) -> None:
    words = [
        f" = Title {a} = \n"
        + "".join(" " + " ".join(f"w{a}x{p}x{i}" for i in range(70)) + " \n" for p in range(4))
        for a in range(2)
    ]
    questions = make_questions("".join(words), count=8, seed=3)
    assert len({q.context for q in questions}) == 8
    for question in questions:
        right = question.endings[question.right].split()
        assert right[0] == question.context.split()[-1].replace("x47", "x48")
        assert len(set(question.endings)) == 4
    with pytest.raises(ValueError, match="8 questions"):
        make_questions("".join(words), count=9)

    model, tokenizer = stories
    score = question_accuracy(model, tokenizer, questions[:3])
    # The cached answer is the plain one.
    right = 0
    for question in questions[:3]:
        context = tokenizer.encode(question.context, add_special_tokens=False)
        sums = []
        for ending in question.endings:
            ids = torch.tensor([context + tokenizer.encode(" " + ending, add_special_tokens=False)])
            with torch.no_grad():
                logs = model(ids).logits[0, :-1].log_softmax(-1)
            picked = logs.gather(1, ids[0, 1:, None])[len(context) - 1 :]
            sums.append(picked.sum().item())
        right += sums.index(max(sums)) == question.right
    assert score.accuracy == pytest.approx(right / 3)


def test_wikitext_has_the_recorded_size(stories: tuple) -> None:
    text = wikitext2("test")
    assert len(text.split()) == 241_211
    assert len(make_questions(text, count=1000)) == 1000
    assert len(tokenize(stories[1], text[:2000])) > 500
