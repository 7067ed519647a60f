"""Efficient mixers: every form of each gives the same, and memory stays where it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from papers_shared.language_models import tiny_llama
from papers_shared.tables.recipe import Context
from transformer_compression.efficient import recipes as mixer_recipes
from transformer_compression.efficient.attention import (
    elu_features,
    linear_attention,
    orthogonal_directions,
    performer_features,
    running_products,
)
from transformer_compression.efficient.byte_model import MixerModel, bits_per_byte, train_bytes
from transformer_compression.efficient.exchange import exchange_mixers
from transformer_compression.efficient.local import window_attention, window_mask
from transformer_compression.efficient.mixers import MIXERS, build_mixer, state_bytes
from transformer_compression.efficient.moe import MoEFeedForward
from transformer_compression.efficient.reproduce import TABLES
from transformer_compression.efficient.retention import Retention
from transformer_compression.efficient.ssm import Mamba, selective_scan
from transformer_compression.vision.vit import build_vit

CAUSAL = tuple(MIXERS)
BOTH_WAYS = ("softmax", "local", "linear", "pooling")


def heads(length: int = 21, seed: int = 0) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 3, length, 8, generator=draw) for _ in range(3))


def made(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    if name == "local":
        options = {"window": 5, "global_tokens": 2, **options}
    return build_mixer(name, width=24, heads=3, **options).eval()


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_token_by_token_is_the_same_as_all_at_once(name: str) -> None:
    mixer = made(name)
    x = torch.randn(2, 19, 24, generator=torch.Generator().manual_seed(1))
    state, out = None, []
    for t in range(x.shape[1]):
        y, state = mixer.step(x[:, t : t + 1], state)
        out.append(y)
    torch.testing.assert_close(torch.cat(out, 1), mixer(x), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_nothing_sees_what_comes_after_it(name: str) -> None:
    mixer = made(name)
    x = torch.randn(1, 12, 24, generator=torch.Generator().manual_seed(1))
    changed = x.clone()
    changed[:, 8:] += 1
    same = (mixer(x) - mixer(changed)).abs().amax(-1)[0]
    assert same[:8].max() < 1e-5
    assert same[8:].max() > 1e-3


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_only_exact_attention_keeps_more_with_every_token(name: str) -> None:
    mixer = made(name)
    sizes, state = [], None
    for _ in range(30):
        _, state = mixer.step(torch.ones(1, 1, 24), state)
        sizes.append(state_bytes(state))
    assert (sizes[-1] > sizes[19]) == (name == "softmax")
    assert sizes[-1] > 0


@pytest.mark.parametrize("name", BOTH_WAYS)
@torch.no_grad()
def test_both_ways_the_last_token_reaches_the_first(name: str) -> None:
    mixer = made(name, causal=False)
    x = torch.randn(1, 3, 24, generator=torch.Generator().manual_seed(1))
    changed = x.clone()
    changed[:, 1] += 1
    assert (mixer(x) - mixer(changed))[:, 0].abs().max() > 1e-4


@pytest.mark.parametrize("name", ["retention", "mamba"])
def test_mixers_that_run_forward_only_say_so(name: str) -> None:
    with pytest.raises(ValueError, match="forward in time only"):
        made(name, causal=False)
    with pytest.raises(ValueError, match="no mixer is called"):
        build_mixer("fastest", width=8, heads=1)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("global_tokens", [0, 2])
@pytest.mark.parametrize("length", [5, 21, 24])
def test_window_attention_is_attention_under_its_mask(
    length: int, global_tokens: int, causal: bool
) -> None:
    q, k, v = heads(length)
    mask = window_mask(length, 4, global_tokens=global_tokens, causal=causal)
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    ours = window_attention(q, k, v, window=4, global_tokens=global_tokens, causal=causal)
    torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("causal", [True, False])
def test_linear_attention_is_normalised_products_of_features(causal: bool) -> None:
    q, k, v = heads()
    weights = elu_features(q) @ elu_features(k).transpose(-1, -2)
    weights = weights.tril() if causal else weights
    wanted = weights / weights.sum(-1, keepdim=True) @ v
    ours = linear_attention(q, k, v, causal=causal, chunk=8)
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-4)


def test_running_products_go_on_from_a_state_and_decay() -> None:
    q, k, v = heads()
    decay = torch.tensor([-0.1, -0.5, 0.0])
    whole, last = running_products(q, k, v, log_decay=decay, chunk=4)
    first, state = running_products(*(x[:, :, :9] for x in (q, k, v)), log_decay=decay)
    rest, end = running_products(*(x[:, :, 9:] for x in (q, k, v)), log_decay=decay, state=state)
    torch.testing.assert_close(torch.cat([first, rest], 2), whole)
    torch.testing.assert_close(end, last)


def test_performers_features_estimate_the_exponential() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k = (0.25 * torch.randn(1, 1, 6, 8, generator=draw) for _ in range(2))
    directions = orthogonal_directions(4096, 8, draw)
    estimate = performer_features(q, directions) @ performer_features(k, directions).mT
    wanted = (q @ k.mT / 8**0.5).exp()
    torch.testing.assert_close(estimate, wanted, rtol=0.1, atol=0.05)
    block = directions[:8]
    cosine = F.normalize(block, dim=1) @ F.normalize(block, dim=1).T
    torch.testing.assert_close(cosine, torch.eye(8), atol=1e-5, rtol=0)


def test_retention_starts_as_retnet_says() -> None:
    torch.manual_seed(0)
    layer = Retention(32, 4)
    assert sum(p.numel() for p in layer.parameters()) == 8 * 32**2
    torch.testing.assert_close(layer.log_decay.exp(), 1 - 2.0 ** -torch.arange(5, 9))
    bound = 2**-2.5 * (6 / 64) ** 0.5
    assert 0.9 * bound < layer.q_proj.weight.abs().max() <= bound
    with pytest.raises(ValueError, match="do not divide"):
        Retention(30, 4)


def test_mamba_starts_as_its_authors_say() -> None:
    torch.manual_seed(0)
    mixer = Mamba(32)
    dt = F.softplus(mixer.dt_proj.bias)
    assert dt.min() >= 1e-3 * 0.99
    assert dt.max() <= 0.1 * 1.01
    torch.testing.assert_close(mixer.A_log[0].exp(), torch.arange(1.0, 17.0))
    assert mixer.x_proj.out_features == 2 + 32


def test_a_scan_goes_on_from_its_state() -> None:
    draw = torch.Generator().manual_seed(0)
    u, delta = torch.randn(2, 1, 6, 10, generator=draw).unbind(0)
    b, c = torch.randn(2, 1, 4, 10, generator=draw).unbind(0)
    a = -torch.rand(6, 4, generator=draw)
    whole, last = selective_scan(u, delta, a, b, c, delta_softplus=True)
    parts, state = [], None
    for span in (slice(0, 3), slice(3, 10)):
        y, state = selective_scan(
            u[..., span], delta[..., span], a, b[..., span], c[..., span],
            delta_softplus=True, state=state,
        )  # fmt: skip
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, -1), whole)
    torch.testing.assert_close(state, last)


def test_experts_share_the_work() -> None:
    torch.manual_seed(0)
    layer = MoEFeedForward(8, 16, experts=4, top_k=2)
    x = torch.randn(3, 7, 8)
    out = layer(x)
    p = layer.gate(x).softmax(-1)
    top, chosen = p.topk(2, -1)
    top = top / top.sum(-1, keepdim=True)
    wanted = sum(
        top[1, 2, i] * layer.experts[chosen[1, 2, i]](x[1, 2])
        for i in range(2)  # type: ignore[misc]
    )
    torch.testing.assert_close(out[1, 2], wanted)
    with torch.no_grad():
        layer.gate.weight.zero_()
    layer(x)
    assert layer.balance.item() == pytest.approx(1)
    full = MoEFeedForward(8, 16, experts=4, top_k=1, capacity=0.5)
    assert (full(x).flatten(0, 1).abs().sum(-1) == 0).any()  # too many for one expert: skipped
    with pytest.raises(ValueError, match="top_k"):
        MoEFeedForward(8, 16, experts=2, top_k=3)


# --- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAUSAL)
def test_a_byte_model_learns_and_decodes_as_it_scores(name: str) -> None:
    torch.manual_seed(0)
    model = MixerModel(name, width=32, layers=2, heads=2, context=32)
    text = b"the cat sat on the mat. " * 40
    losses = train_bytes(model, text, steps=25, batch=4, length=24, seed=0, lr=1e-2)
    assert losses[-1] < 0.7 * losses[0]
    assert bits_per_byte(model, text, length=24, windows=8) < 8
    tokens = torch.tensor(list(text[:20]))[None]
    torch.testing.assert_close(model.decode(tokens), model(tokens), atol=1e-4, rtol=1e-3)


def test_exchanged_mixers_run_in_stock_models() -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 97, (1, 9), generator=torch.Generator().manual_seed(0))
    for name in CAUSAL:
        model = exchange_mixers(tiny_llama(), name)
        loss = model(x, labels=x, use_cache=False).loss
        loss.backward()
        assert torch.isfinite(loss)
    with pytest.raises(ValueError, match="use_cache=False"):
        model(x, use_cache=True)
    for name in BOTH_WAYS:
        vit = exchange_mixers(build_vit(embed_dim=24, depth=2, num_heads=3, image_size=16), name)
        assert vit(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    with pytest.raises(ValueError, match="expected a Llama-like"):
        exchange_mixers(torch.nn.Linear(2, 2), "linear")


# --- recipes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAUSAL)
def test_costs_have_every_column_and_states_their_size(name: str, tmp_path: Path) -> None:
    recipe = TABLES["mixer_costs"].recipes[name]
    settings = {**recipe.settings, "lengths": [32, 80], "repeats": 1, "width": 24, "heads": 3}
    found = recipe.run(Context("cpu", 0, tmp_path, settings))
    kinds = ("forward", "memory", "step", "state")
    assert set(found) == {f"{kind}_{n}" for kind in kinds for n in (32, 80)}
    assert (found["state_80"].value > found["state_32"].value) == (name in ("softmax", "local"))
    assert found["step_80"].value > 0


def test_a_trained_row_is_a_mean_over_seeds(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(mixer_recipes, "wikitext2", lambda split: "some text to learn from " * 40)
    recipe = TABLES["mixers"].recipes["linear"]
    small = {"width": 16, "heads": 2, "layers": 1, "steps": 3, "batch": 2, "length": 16}
    settings = {**recipe.settings, **small, "windows": 4, "seeds": 2}
    found = recipe.run(Context("cpu", 0, tmp_path, settings))
    assert found["bits_per_byte"].n == 2
    assert found["bits_per_byte"].std > 0
    assert 0 < found["bits_per_byte"].value < 9
