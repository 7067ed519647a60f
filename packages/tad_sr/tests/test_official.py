"""The authors' layout, and what is refused as not theirs."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from papers_shared import assets
from tad_sr import CHECKPOINTS, VARIANTS, load_official, load_released
from tad_sr.discriminator import discriminator_for
from tad_sr.model import build
from tad_sr.official import LAYOUT


def answers_alike(ours, theirs) -> bool:
    config = ours.architecture
    side = config.image_size
    x = torch.randn(1, config.in_channels, side, side)
    inputs = x, torch.tensor([3]), torch.randn(1, 3, side, side)
    with torch.no_grad():
        return torch.equal(ours(*inputs), theirs(*inputs))


@pytest.mark.parametrize(
    "renamed", ["{}", "module.{}", "_orig_mod.{}", "module._orig_mod.{}", "_orig_mod.module.{}"]
)
def test_prefixes_of_wrappers_go(teacher, tiny, renamed: str) -> None:
    state = {renamed.format(name): value for name, value in teacher.state_dict().items()}
    assert answers_alike(load_official(state, tiny), teacher.eval())


def test_the_mark_of_compile_goes_from_inside_names(teacher, tiny) -> None:
    state = {
        name.replace("middle_block.0.", "middle_block.0._orig_mod."): value
        for name, value in teacher.state_dict().items()
    }
    assert any("._orig_mod." in name for name in state)
    loaded = load_official({"state_dict": state, "iters_start": 7}, tiny)
    assert answers_alike(loaded, teacher.eval())


def test_masks_and_indices_may_be_absent_or_of_another_size(teacher, tiny) -> None:
    larger = build(
        dataclasses.replace(tiny, image_size=16, lq_size=16, attention_resolutions=(16,))
    )
    weights = {
        name: value
        for name, value in teacher.state_dict().items()
        if not name.endswith(("attn_mask", "relative_position_index"))
    }
    masks = {n: v for n, v in larger.state_dict().items() if n.endswith("attn_mask")}
    assert masks
    assert answers_alike(load_official(weights, tiny), teacher.eval())
    assert answers_alike(load_official(weights | masks, tiny), teacher.eval())


def test_another_variant_is_named() -> None:
    with torch.device("meta"):
        state = build(VARIANTS["faceir"]).state_dict()
    assert LAYOUT.recognise(state) == "faceir"
    with pytest.raises(ValueError, match="of variant 'faceir', not 'realsr'"):
        load_official(state, VARIANTS["realsr"])
    with torch.device("meta"):
        state = build(VARIANTS["small"]).state_dict()
    with pytest.raises(ValueError, match="choose variant 'small'"):
        load_official(state, {"model_channels": 32})


def test_what_fits_no_variant_is_refused_with_names(teacher, tiny) -> None:
    state = teacher.state_dict()
    del state["out.2.bias"]
    with pytest.raises(ValueError, match=r"1 missing \(out\.2\.bias\)"):
        load_official(state, tiny)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("input_blocks.1.1.blocks.0.adaLN_scale_msa.1.weight", "a DiT-SR checkpoint"),
        ("quantize.embedding.weight", "a VQ autoencoder's"),
    ],
)
def test_other_networks_are_named(tiny, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_official({name: torch.zeros(1)}, tiny)


def test_a_discriminator_is_named(tiny) -> None:
    with pytest.raises(ValueError, match="a discriminator's"):
        load_official(discriminator_for(tiny, c_dim=8).state_dict(), tiny)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_refused(teacher, tiny, value: float) -> None:
    state = teacher.state_dict()
    state["out.2.bias"][0] = value
    with pytest.raises(ValueError, match=r"1 entries .*out\.2\.bias first"):
        load_official(state, tiny)


def test_half_precision_weights_become_float32(teacher, tiny) -> None:
    state = {n: v.half() if v.is_floating_point() else v for n, v in teacher.state_dict().items()}
    assert load_official(state, tiny).out[2].weight.dtype == torch.float32


def test_the_catalogue_knows_every_checkpoint_and_downloads_none() -> None:
    autoencoders = ("vq_f4_autoencoder", "vq_f8_face_autoencoder")
    for name in (*(checkpoint.asset for checkpoint in CHECKPOINTS.values()), *autoencoders):
        (form,) = assets.describe(name).forms
        assert all(file.unverified and file.url for file in form.files)
    assert {checkpoint.variant for checkpoint in CHECKPOINTS.values()} <= VARIANTS.keys()


def test_a_file_that_is_nowhere_is_asked_for_with_its_address(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv(assets.MIRROR_VARIABLE, raising=False)
    monkeypatch.setenv(assets.CACHE_VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"TAD-SR\.pth.*drive\.google\.com"):
        load_released("tad_sr")
    with pytest.raises(ValueError, match="no released checkpoint 'dmd'"):
        load_released("dmd")


def test_a_users_file_is_loaded_as_weights_alone(tmp_path, monkeypatch, tiny, teacher) -> None:
    path = tmp_path / "TAD-SR.pth"
    torch.save({"state_dict": teacher.state_dict()}, path)
    monkeypatch.setitem(VARIANTS, "realsr", tiny)
    assert answers_alike(load_released("tad_sr", path=str(path)), teacher.eval())
    torch.save({"state_dict": teacher.state_dict(), "code": pytest.raises}, path)
    with pytest.raises(ValueError, match="refused"):
        load_released("tad_sr", path=str(path))
