"""The generation U-net: start, guidance, label dropout, loading, identity with U-DiT."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from ipt_v2.feedforward import merge
from ipt_v2.generation import GENERATION_VARIANTS, IPTBlock, IPTUNet, UNetConfig
from ipt_v2.model import VARIANTS, build
from ipt_v2.official import load_official
from papers_shared.name_seeded import name_seeded_state_dict, seeded_input
from papers_shared.parity import fingerprint_error

TINY = UNetConfig(
    input_size=8,
    hidden_size=8,
    num_heads=2,
    depth=(1, 1, 1, 1, 1),
    num_classes=5,
    mlp_ratio=2,
    local_win=(4, 2, 2, 2, 4),
    attn_seq=(0, 1),
)


def random_network(config: UNetConfig = TINY) -> IPTUNet:
    """No weight is zero, as some are in a new network."""
    model = IPTUNet(config)
    state = name_seeded_state_dict(model.state_dict())
    for name in state:
        if name.endswith("mask"):
            state[name] = 1 + state[name].abs()
    model.load_state_dict(state)
    return model.eval()


def inputs(batch: int = 2):
    return torch.randn(batch, 4, 8, 8), torch.arange(batch) + 10, torch.arange(batch)


def test_a_new_network_gives_zero_and_its_blocks_are_the_identity():
    model = IPTUNet(TINY)
    x, t, y = inputs()
    assert not model.eval()(x, t, y).any()
    h, c = torch.randn(1, 8, 8, 8), torch.randn(1, 8)
    assert torch.equal(model.encoder_level_1[0](h, c), h)


def test_guidance_is_of_the_first_three_channels_in_both_halves():
    model = random_network()
    x, t, y = inputs()
    x2, t2, y2 = torch.cat([x, x + 1]), torch.cat([t, t]), torch.cat([y, torch.full((2,), 5)])
    with torch.no_grad():
        conditional, unconditional = model(x, t, y), model(x, t, y2[2:])
        guided = model.forward_with_cfg(x2, t2, y2, 1.5)
        plain = model.forward_with_cfg(x2, t2, y2, 1.0, guidance_channels=4)
    expected = (unconditional + 1.5 * (conditional - unconditional))[:, :3]
    for half in guided[:2], guided[2:]:
        torch.testing.assert_close(half[:, :3], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(guided[2:, 3:], unconditional[:, 3:], atol=1e-5, rtol=0)
    torch.testing.assert_close(plain[2:, :4], conditional[:, :4], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["independent", "joint"])
def test_training_drops_labels_of_each_table_by_itself_or_of_all(kind):
    config = UNetConfig.of({**TINY.to_dict(), "label_dropout": kind, "class_dropout_prob": 0.5})
    model = random_network(config).train()
    count = 400
    t, y = torch.zeros(count, dtype=torch.long), torch.ones(count, dtype=torch.long)
    drawn = model.conditions(t, y, generator=torch.Generator().manual_seed(0))
    whole = model.eval().conditions(t, y)
    dropped = torch.stack(
        [(a != b).any(1) for a, b in zip(drawn, whole, strict=True)]
    )  # (tables, samples)
    assert dropped.float().mean(1).tolist() == pytest.approx([0.5] * 3, abs=0.1)
    all_three = dropped.all(0).float().mean().item()
    assert all_three == pytest.approx(0.125 if kind == "independent" else 0.5, abs=0.1)
    again = model.train().conditions(t, y, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))


def test_a_latent_that_does_not_divide_is_refused_before_anything_runs():
    model = IPTUNet(TINY)
    assert model.alignment == TINY.alignment == 8
    with pytest.raises(ValueError, match="multiples of 8"):
        model(torch.randn(1, 4, 12, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    assert GENERATION_VARIANTS["g48"].alignment == 16
    with pytest.raises(ValueError, match="expected two of 0"):
        IPTBlock(8, 2, attn_seq=[0, 3])
    with pytest.raises(ValueError, match="expected 'rep', 'basic' or 'dwconvK'"):
        IPTBlock(8, 2, ffn_type="swiglu")
    with pytest.raises(ValueError, match="depth is missing"):
        UNetConfig.of({"hidden_size": 8})


@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dicts_of_both_networks_are_loaded_strictly(prefix):
    for model in (random_network(), build(VARIANTS["cpu_toy"]), merge(random_network())):
        state = {prefix + name: value for name, value in model.state_dict().items()}
        loaded = load_official(state, model.config)
        assert type(loaded) is type(model)
        assert not loaded.training
        for name, value in loaded.state_dict().items():
            assert torch.equal(value, model.state_dict()[name])
        assert load_official(state, model.config.to_dict()).config == model.config
        first = next(iter(state))
        with pytest.raises(ValueError, match="the checkpoint"):
            load_official({n: v for n, v in state.items() if n != first}, model.config)
        with pytest.raises(ValueError, match="NaN or infinity"):
            load_official({**state, first: state[first] * torch.nan}, model.config)


@pytest.mark.skipif(not os.environ.get("PAPERS_MIRROR"), reason="PAPERS_MIRROR is not set")
def test_with_grid_attention_twice_it_is_u_dit():
    """The authors' values of U-DiT's release, its names and arguments mapped onto this network."""
    folder = Path(os.environ["PAPERS_MIRROR"].split(os.pathsep)[0])
    recorded = json.loads((folder / "golden/u_dit.json").read_text())["cases"]
    names = {
        "down_factor": "global_win", "downsampler": "before_attn", "down_shortcut": "aug_shortcut"
    }  # fmt: skip
    ran = 0
    for case in recorded:
        if case["name"] not in ("udit_a", "udit_b"):
            continue
        config = {names.get(key, key): value for key, value in case["config"].items()}
        state = name_seeded_state_dict({n: torch.empty(shape) for n, shape in case["state"]})
        model = load_official(state, {**config, "attn_seq": [0, 0]})
        x = seeded_input(case["input"]["name"], tuple(case["input"]["shape"]))
        with torch.no_grad():
            y = model(x, torch.tensor(case["t"]), torch.tensor(case["y"]))
        assert fingerprint_error(y, case["output_unfused"]) < 1e-5
        ran += 1
    assert ran == 2
