"""The authors' checkpoints: which layouts load, and what is said of those that do not."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dit_sr import VARIANTS, Config, build, load_official, load_pipeline, load_released
from dit_sr.family import FAMILY
from dit_sr.official import LAYOUT
from papers_shared.diffusion import families
from papers_shared.diffusion.swin_unet import SwinUNetConfig, UNetModelSwin

from .conftest import TINY

BUFFERS = ("attn_mask", "relative_position_index")


# The small network and its like for faces as the only variants.
VARIANTS_HERE = {"tiny": TINY, "face": replace(TINY, in_channels=8, out_channels=8)}
SMALL = replace(
    FAMILY,
    variants=VARIANTS_HERE,
    schedulers={"tiny": {"num_train_timesteps": 4}, "face": {}},
    layout=replace(LAYOUT, variants=VARIANTS_HERE),
)
load_small = partial(families.load_pipeline, SMALL)


def saved(state: dict[str, Tensor], folder: Path, **more: Any) -> str:
    path = folder / "authors.pth"
    torch.save({"state_dict": state, "iters_start": 300_000, **more}, path)
    return str(path)


def output(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x, lq = torch.randn(2, 1, 3, 16, 16, generator=generator)
    with torch.no_grad():
        return model(x, torch.tensor([7]), lq)


# --- layouts


def test_the_authors_names_are_ours() -> None:
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in build(VARIANTS["realsr"]).state_dict().items()}
    for name, shape in {
        "input_blocks.0.0.weight": (160, 6, 3, 3),
        "input_blocks.1.0.patch_embed.proj.weight": (192, 160, 1, 1),
        "input_blocks.1.0.blocks.5.attn_mask": (64, 64, 64),
        "input_blocks.2.0.op.weight": (320, 160, 3, 3),
        "middle_block.0.blocks.0.adaLN_scale_msa.1.weight": (40, 640),
        "middle_block.0.blocks.0.mlp.fc1.weight": (768, 192, 1, 1),
        "output_blocks.1.2.conv.weight": (320, 640, 3, 3),
        "output_blocks.7.1.blocks.0.attn.relative_position_bias_table": (225, 6),
        "out.2.bias": (3,),
    }.items():
        assert shapes[name] == shape, name


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_prefixes_are_taken_off(tiny: Config, network: nn.Module, prefix: str) -> None:
    state = {prefix + name: value for name, value in network.state_dict().items()}
    loaded = load_official({"state_dict": state}, tiny)
    assert not loaded.training
    assert torch.equal(output(loaded), output(network))


def test_shift_masks_and_position_indices_may_be_absent(tiny: Config, network: nn.Module) -> None:
    state = {k: v for k, v in network.state_dict().items() if not k.endswith(BUFFERS)}
    assert len(state) < len(network.state_dict())
    assert torch.equal(output(load_official(state, tiny)), output(network))


def test_shift_masks_may_be_of_another_nominal_size(tiny: Config, network: nn.Module) -> None:
    larger = build(replace(tiny, image_size=32, attention_resolutions=(32, 16), lq_size=32))
    masks = {k: v for k, v in larger.state_dict().items() if k.endswith("attn_mask")}
    assert any(v.shape != network.state_dict()[k].shape for k, v in masks.items())
    loaded = load_official({**network.state_dict(), **masks}, tiny)
    assert torch.equal(output(loaded), output(network))


def test_a_file_of_the_authors_gives_a_pipeline_of_the_guessed_variant(
    network: nn.Module, autoencoder_file: str, tmp_path: Path
) -> None:
    state = {
        f"module.{name}": value
        for name, value in network.state_dict().items()
        if not name.endswith(BUFFERS)
    }
    pipeline = load_small(saved(state, tmp_path), autoencoder=autoencoder_file)
    assert torch.equal(output(pipeline.unet), output(network))
    assert len(pipeline.scheduler) == 4
    assert not any(p.requires_grad for p in pipeline.unet.parameters())


def test_a_variant_is_told_by_its_shapes() -> None:
    with torch.device("meta"):
        state = build(VARIANTS["faceir"]).state_dict()
    assert LAYOUT.recognise(state) == "faceir"
    assert LAYOUT.recognise({**state, "more": torch.zeros(1)}) is None


def test_a_file_of_ours_says_itself_what_it_is(weights: str) -> None:
    pipeline = load_pipeline(weights)
    assert pipeline.unet.architecture.swin_embed_dim == 16
    assert len(pipeline.scheduler) == 4
    assert pipeline.vae.config.latent_channels == 3


# --- refusals


def test_missing_weights_say_where_they_are_had(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights at .*realsr\.pth; the authors'"):
        load_pipeline(str(tmp_path / "realsr.pth"))


def test_a_resshift_checkpoint_is_sent_to_tad_sr(
    tiny: Config, tmp_path: Path, autoencoder_file: str
) -> None:
    config = SwinUNetConfig(model_channels=32, num_res_blocks=(1, 1), swin_embed_dim=32)
    state = UNetModelSwin(replace(config, channel_mult=(1, 2))).state_dict()
    with pytest.raises(ValueError, match=r"that of ResShift's U-net.*tad-sr upscale"):
        load_official(state, tiny)
    with pytest.raises(ValueError, match=r"that of ResShift's U-net.*tad-sr upscale"):
        load_pipeline(saved(state, tmp_path), autoencoder=autoencoder_file)


def test_what_fits_no_variant_is_compared_with_the_one_that_is_named(
    network: nn.Module, tmp_path: Path
) -> None:
    state = dict(network.state_dict())
    state["extra.weight"] = state.pop("out.2.bias")
    file = saved(state, tmp_path)
    with pytest.raises(ValueError, match="fits none of tiny, face; --variant NAME tells"):
        load_small(file)
    message = r"1 missing \(out\.2\.bias\); 1 unexpected \(extra\.weight\)"
    with pytest.raises(ValueError, match=message):
        load_small(file, variant="tiny")


def test_another_variant_than_the_files_is_refused(network: nn.Module, tmp_path: Path) -> None:
    file = saved(dict(network.state_dict()), tmp_path)
    with pytest.raises(ValueError, match="of variant 'tiny', not 'face'; choose variant 'tiny'"):
        load_small(file, variant="face")
    with pytest.raises(ValueError, match="no variant 'realsr'; known: tiny, face"):
        load_small(file, variant="realsr")


@pytest.mark.parametrize(
    ("variant", "file"),
    [("tiny", "autoencoder_vq_f4.pth"), ("face", "ffhq512_vq_f8_dim8_face.pth")],
)
def test_weights_without_their_autoencoder_ask_for_it(
    tmp_path: Path, variant: str, file: str
) -> None:
    state = build(SMALL.variants[variant]).state_dict()
    with pytest.raises(ValueError, match=f"--autoencoder {file}"):
        load_small(saved(state, tmp_path))


def test_an_autoencoder_of_other_channels_is_refused(autoencoder_file: str, tmp_path: Path) -> None:
    state = build(SMALL.variants["face"]).state_dict()
    with pytest.raises(ValueError, match="has 3 latent channels, the network takes 8"):
        load_small(saved(state, tmp_path), autoencoder=autoencoder_file)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    network: nn.Module, tmp_path: Path, value: float
) -> None:
    state = dict(network.state_dict())
    state["time_embed.2.bias"] = torch.full_like(state["time_embed.2.bias"], value)
    with pytest.raises(ValueError, match=r"1 entries .* NaN or infinity \(time_embed\.2\.bias"):
        load_small(saved(state, tmp_path))


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, autoencoder_file: str) -> None:
    (tmp_path / "page.pth").write_text("<html>quota exceeded</html>")
    with pytest.raises(ValueError, match=r"page\.pth"):
        load_pipeline(str(tmp_path / "page.pth"))
    with pytest.raises(ValueError, match=r"autoencoder\.safetensors fits none of"):
        load_pipeline(autoencoder_file)


def test_a_denoiser_is_no_autoencoder(weights: str) -> None:
    with pytest.raises(ValueError, match=r"network\.safetensors holds no autoencoder"):
        load_small(weights, autoencoder=weights)


def test_a_saved_pipeline_brings_all_with_it(weights: str, tmp_path: Path) -> None:
    whole = load_pipeline(weights)
    whole.save_pretrained(tmp_path / "whole")
    again = load_pipeline(str(tmp_path / "whole"))
    picture = torch.rand(3, 5, 7)
    assert torch.equal(again.enlarge(picture), whole.enlarge(picture))
    with pytest.raises(ValueError, match="leave out variant and autoencoder"):
        load_pipeline(str(tmp_path / "whole"), variant="realsr")


def test_a_released_network_is_found_by_name_and_never_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="known: realsr, faceir"):
        load_released("lite")
    monkeypatch.setenv("PAPERS_CACHE", str(tmp_path))
    monkeypatch.delenv("PAPERS_MIRROR", raising=False)
    with pytest.raises(FileNotFoundError, match=r"drive\.google\.com"):
        load_released()
