"""Networks: both implementations, names, sizes, files of weights."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from dukd import VARIANTS, build, guess_config, init_from, load_official
from dukd.model import Config, reflected
from dukd.official import convert
from dukd.teachers import load_teacher
from papers_shared._basicsr import basicsr_module
from papers_shared.complexity import count_parameters

TINY = {
    "EDSR": {"num_feat": 8, "num_block": 2, "res_scale": 0.1},
    "RCAN": {"num_feat": 8, "num_group": 2, "num_block": 2, "squeeze_factor": 4},
}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("edsr_teacher_x4", 43_089_923),
        ("edsr_student_x2", 2_551_555),
        ("rcan_teacher_x3", 15_629_283),
        ("rcan_student_x4", 5_171_315),
        ("mini_x2", 31_043),
    ],
)
def test_sizes_are_those_of_the_paper(name: str, count: int) -> None:
    with torch.device("meta"):
        assert count_parameters(build(VARIANTS[name], implementation="own")) == count


@pytest.mark.parametrize("arch", TINY)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_our_networks_are_basicsrs(arch: str, scale: int) -> None:
    try:
        basicsr_module("archs.edsr_arch")
    except ImportError as error:
        pytest.skip(str(error))
    config = {"arch": arch, "upscale": scale, **TINY[arch]}
    ours, theirs = build(config, implementation="own"), build(config, implementation="basicsr")
    assert type(ours).__module__ == "dukd.networks"
    assert type(theirs).__module__.startswith("basicsr.")
    theirs.load_state_dict(ours.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    x = torch.rand(2, 3, 9, 7)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_without_basicsr_ours_take_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "basicsr", None)
    for name in [m for m in sys.modules if m.startswith("basicsr.")]:
        monkeypatch.setitem(sys.modules, name, None)
    config = {"arch": "RCAN", "upscale": 2, **TINY["RCAN"]}
    assert type(build(config)).__module__ == "dukd.networks"
    with pytest.raises(ImportError, match="basicsr"):
        build(config, implementation="basicsr")


def test_a_swinir_takes_any_size() -> None:
    config = Config(
        "SwinIR",
        2,
        {
            "img_size": 16,
            "window_size": 8,
            "embed_dim": 12,
            "depths": [2],
            "num_heads": [2],
            "mlp_ratio": 2,
            "upsampler": "pixelshuffledirect",
        },
    )
    network = build(config).eval()
    x = torch.rand(1, 3, 13, 20)
    with torch.no_grad():
        out = network(x)
        assert out.shape == (1, 3, 26, 40)
        assert torch.equal(out, network(reflected(x, multiple=8))[..., :26, :40])
        # Trained at 48 pixels, its masks are of that size: made anew, at any.
        state = {k: v for k, v in network.state_dict().items() if "attn_mask" not in k}
        state["layers.0.residual_group.blocks.1.attn_mask"] = torch.zeros(36, 64, 64)
        guessed = guess_config(state)
        assert guessed is not None
        assert guessed.arguments["img_size"] == 48
        assert torch.equal(load_official({"params": state}, guessed)(x), out)


def test_small_pictures_are_continued_by_their_edge() -> None:
    x = torch.arange(4.0).view(1, 1, 2, 2)
    assert torch.equal(reflected(x, minimum=3)[0, 0, :, 2], torch.tensor([0.0, 2, 0]))
    assert reflected(x, minimum=9).shape == (1, 1, 9, 9)
    assert reflected(x, multiple=2) is x


# ---- names


def test_what_users_type_is_read() -> None:
    assert Config.parse("mini_x2") == VARIANTS["mini_x2"]
    typed = Config.parse("EDSR(num_feat=24, num_block=4)", 3)
    assert (typed.arch, typed.upscale) == ("EDSR", 3)
    assert typed.arguments == {"num_feat": 24, "num_block": 4}
    assert Config.of(typed.to_dict()) == typed
    for text, message in (
        ("EDSR(24)", "arguments have names"),
        ("EDSR(num_feat=open('x'))", "expected EDSR"),
        ("EDRS", "no network 'EDRS'"),
        ("mini_x2(a=1)", "no network"),
    ):
        with pytest.raises(ValueError, match=message):
            Config.parse(text, 2)
    with pytest.raises(ValueError, match="enlarges 2 times, --scale says 4"):
        Config.parse("mini_x2", 4)


def test_arguments_that_a_class_does_not_take_are_named() -> None:
    with pytest.raises(ValueError, match="num_feet"):
        build({"arch": "EDSR", "upscale": 2, "num_feet": 3}, implementation="own")


def test_files_cannot_name_code() -> None:
    with pytest.raises(ValueError, match="name it yourself"):
        Config.of({"arch": "os:system", "upscale": 2})


def test_networks_of_users_are_imported_by_name() -> None:
    assert isinstance(build(Config("torch.nn:Identity", 1)), nn.Identity)
    with pytest.raises(ValueError, match="importable"):
        build(Config("no_such_module:Net", 2))
    with pytest.raises(ValueError, match="not a torch module"):
        build(Config("builtins:dict", 2))


# ---- files


def original(state: dict[str, torch.Tensor], blocks: int) -> dict[str, torch.Tensor]:
    """An EDSR's state dict in its authors' layout."""
    out = {"sub_mean.weight": torch.zeros(3, 3, 1, 1), "sub_mean.bias": torch.zeros(3)}
    for name, value in state.items():
        for old, new in (
            ("conv_first", "head.0"),
            (".conv1", ".body.0"),
            (".conv2", ".body.2"),
            ("conv_after_body", f"body.{blocks}"),
            ("upsample", "tail.0"),
            ("conv_last", "tail.1"),
        ):
            name = name.replace(old, new)
        out[name] = value
    return out


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_original_edsr_files_load(scale: int, make_edsr) -> None:
    network = make_edsr(scale=scale).eval()
    file = {f"module.{k}": v for k, v in original(network.state_dict(), 3).items()}
    assert convert(file).keys() == network.state_dict().keys()
    loaded = load_official(file)
    x = torch.rand(1, 3, 6, 5)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), network(x))


def test_a_network_is_recognised_by_its_shapes() -> None:
    for arch, arguments in TINY.items():
        config = Config(arch, 4, arguments | ({"res_scale": 1.0} if arch == "EDSR" else {}))
        state = build(config, implementation="own").state_dict()
        assert guess_config(state) == config
    assert guess_config({"conv.weight": torch.zeros(1)}) is None
    with pytest.raises(ValueError, match="neither an EDSR"):
        load_official({"conv.weight": torch.zeros(1)})


def test_another_scales_weights_begin_a_network(make_edsr, caplog) -> None:
    source, target = make_edsr(scale=2), make_edsr(scale=4)
    fresh = target.upsample[2].weight.clone()
    kept = init_from(target, {"params": source.state_dict()})
    assert kept == ("upsample.2.weight", "upsample.2.bias")
    assert "upsample.2.weight" in caplog.text
    assert torch.equal(target.upsample[0].weight, source.upsample[0].weight)
    assert torch.equal(target.upsample[2].weight, fresh)
    assert len(init_from(make_edsr(scale=3), source.state_dict())) == 2
    with pytest.raises(ValueError, match="outside the upsampler"):
        init_from(make_edsr(channels=4), source.state_dict())


def test_teachers_are_found_or_it_is_said_what_is_missing(tmp_path, make_edsr) -> None:
    with pytest.raises(ValueError, match="rlfn_x4"):
        load_teacher("rlfn_x5")
    with pytest.raises(FileNotFoundError, match="--teacher-weights"):
        load_teacher("edsr_teacher_x4")
    path = tmp_path / "teacher.pth"
    network = make_edsr()
    torch.save({"params": network.state_dict()}, path)
    text = "EDSR(num_feat=8, num_block=3)"
    teacher = load_teacher(text, weights=str(path), key="params", scale=2)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    with pytest.raises(ValueError, match="no entry 'params_ema'"):
        load_teacher(text, weights=str(path), key="params_ema", scale=2)
    with pytest.raises(ValueError, match="does not fit"):
        load_teacher("EDSR(num_feat=4)", weights=str(path), scale=2)
