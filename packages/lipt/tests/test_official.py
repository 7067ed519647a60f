"""The three layouts of the authors' code load, become each other, and are recognised."""

from __future__ import annotations

import pytest
import torch

from lipt import VARIANTS, build, convert, guess_config, load_official, merge
from lipt.model import Config
from lipt.official import layout_of, printed


def outputs(model, size=(9, 20), colors=3):
    x = 255 * torch.rand(1, colors, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(x)


def near(y, expected):
    """Up to the rounding of merged weights."""
    return (y - expected).abs().max() < 1e-5 * expected.abs().max()


def wrappers(state):
    """The ways in which such files come."""
    parallel = {f"module.{name}": value for name, value in state.items()}
    yield state
    yield parallel
    yield {"epoch": 10, "model_state_dict": parallel, "optimizer_state_dict": {}}
    yield {"params": state}


@pytest.mark.parametrize("options", [{}, {"colors": 1, "n_share": 0}, {"r_expand": 2}])
def test_every_layout_loads_and_gives_the_same_output(make_network, options) -> None:
    model = make_network(**options)
    expected = outputs(model, colors=model.config.colors)
    train = model.state_dict()
    half = convert(train, to="half_converted")
    deploy = convert(train)
    assert [layout_of(s) for s in (train, half, deploy)] == ["train", "half_converted", "deploy"]
    for state in (train, half, deploy):
        for wrapped in wrappers(state):
            loaded = load_official(wrapped, model.config)
            assert not loaded.training
            assert loaded.config.deploy == (state is not train)
            y = outputs(loaded, colors=model.config.colors)
            assert near(y, expected)


def test_layouts_become_each_other_the_same_way_round_about(make_network) -> None:
    model = make_network()
    direct = convert(model.state_dict())
    about = convert(convert(model.state_dict(), to="half_converted"))
    merged = merge(model).state_dict()
    assert set(direct) == set(about) == set(merged)
    for name, value in merged.items():
        assert torch.equal(direct[name], value), name
        assert torch.equal(about[name], value), name
    again = convert(direct)
    assert all(torch.equal(again[name], value) for name, value in direct.items())


def test_half_converted_names_are_those_of_the_authors_conversion(make_network) -> None:
    state = convert(make_network().state_dict(), to="half_converted")
    assert "body.0.modules_hrm_a.lcs_a_0.conv0.dbb_reparam.weight" in state
    assert "body.0.modules_nvsm_sa.smmsa_1.project_inp.1.running_var" in state
    assert not [name for name in state if ".dbb_origin." in name]


def test_a_deploy_configuration_merges_what_it_loads(make_network) -> None:
    model = make_network()
    loaded = load_official(model.state_dict(), model.config.to_dict() | {"deploy": True})
    assert len(loaded.state_dict()) == len(merge(model).state_dict())
    assert near(outputs(loaded), outputs(model))


def test_merging_cannot_be_undone(make_network) -> None:
    state = convert(make_network().state_dict())
    with pytest.raises(ValueError, match="'deploy' cannot become 'half_converted' again"):
        convert(state, to="half_converted")
    with pytest.raises(ValueError, match="expected half_converted or deploy"):
        convert(state, to="train")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_recognised_from_its_state_dict(variant) -> None:
    config = VARIANTS[variant]
    given = {"residual": config.residual}  # not in a state dict
    with torch.device("meta"):
        train, deploy = build(config), build(config.to_dict() | {"deploy": True})
    for name in ("sub_mean", "add_mean"):  # their values are read
        for model in (train, deploy):
            if config.colors == 3:
                bias = build({"m_elan": 2, "c_elan": 2}).get_submodule(name).bias
                model.get_submodule(name).bias = bias
    assert guess_config(train.state_dict(), **given) == config
    found = guess_config(deploy.state_dict(), **given, branches=config.branches)
    assert found == Config.of(config.to_dict() | {"deploy": True})


def test_a_guess_knows_branches_width_and_range_and_can_be_overruled(make_network) -> None:
    for changes in (
        {"branches": "dbb"},
        {"branches": "plain"},
        {"r_expand": 3},
        {"rgb_range": 1},
        {"scale": 4, "n_share": 3},
    ):
        model = make_network(**changes)
        assert guess_config(model.state_dict()) == model.config
    model = make_network(window_sizes=(16, 8))
    assert guess_config(model.state_dict(), window_sizes=(16, 8)) == model.config


def test_files_of_other_networks_and_variants_are_refused(make_network) -> None:
    with pytest.raises(ValueError, match="not a LIPT's"):
        load_official({"conv.weight": torch.zeros(1)}, VARIANTS["tiny_x2"])
    state = make_network().state_dict()
    with pytest.raises(ValueError, match="does not fit LIPT"):
        load_official(state, VARIANTS["tiny_x2"])
    with pytest.raises(ValueError, match=r"1 missing \(tail.0.bias\)"):
        load_official({n: v for n, v in state.items() if n != "tail.0.bias"})


def test_the_authors_log_rounds_upwards() -> None:
    assert printed(33.9602, 2) == 33.97
    assert printed(33.9001, 2) == 33.91
    assert printed(0.97357, 4) == 0.9736
