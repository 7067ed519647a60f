"""ResShift's denoiser: sizes of the released networks, layout, conditions, refusals."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from papers_shared.complexity import count_parameters
from papers_shared.diffusion.swin_unet import (
    SwinUNetConfig,
    UNetConfig,
    UNetModelSwin,
    rebuild_buffers,
)
from papers_shared.diffusion.unet_parts import Downsample, condition_extractor, timestep_embedding

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
toy = importlib.import_module("toy_diffusion")

REALSR = SwinUNetConfig()
FACEIR = SwinUNetConfig(in_channels=8, out_channels=8, lq_size=512)


def on_meta(config):
    with torch.device("meta"):
        return UNetModelSwin(config)


def inputs(batch=2, height=8, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, lq = torch.randn(2, batch, 3, height, width, generator=generator)
    return x, torch.arange(batch), lq


# --------------------------------------------------------------------------- size and layout


@pytest.mark.parametrize(
    ("config", "parameters", "entries"),
    [(REALSR, 118_593_583, 564), (FACEIR, 118_931_604, 576)],
    ids=["realsr", "faceir"],
)
def test_full_size_has_118_59_million_parameters(config, parameters, entries):
    model = on_meta(config)
    assert count_parameters(model) == parameters
    assert len(model.state_dict()) == entries


def test_keys_and_shapes_are_the_authors():
    shapes = {name: tuple(value.shape) for name, value in on_meta(REALSR).state_dict().items()}
    for name, shape in {
        "time_embed.0.weight": (640, 160),
        "input_blocks.0.0.weight": (160, 6, 3, 3),
        "input_blocks.1.0.emb_layers.1.weight": (320, 640),
        "input_blocks.3.0.op.weight": (160, 160, 3, 3),
        "input_blocks.4.0.skip_connection.weight": (320, 160, 1, 1),
        "input_blocks.1.1.blocks.1.attn_mask": (64, 64, 64),
        "middle_block.1.patch_embed.proj.weight": (192, 640, 1, 1),
        "output_blocks.2.1.conv.weight": (640, 640, 3, 3),
        "output_blocks.0.1.blocks.0.attn.relative_position_bias_table": (225, 6),
        "out.2.weight": (3, 160, 3, 3),
    }.items():
        assert shapes[name] == shape, name
    assert not any(name.startswith("input_blocks.2.1") for name in shapes)  # one stage a level


@pytest.mark.parametrize("config", [REALSR, FACEIR], ids=["realsr", "faceir"])
def test_the_released_networks_take_multiples_of_64(config):
    assert config.alignment == 64


def test_alignment_holds_whatever_windows_and_levels_ask_for():
    assert toy.CONFIG.alignment == 8
    assert replace(toy.CONFIG, attention_resolutions=()).alignment == 8  # the middle's window
    assert UNetConfig(image_size=24, window_size=6, channel_mult=(1, 2, 4)).alignment == 24
    assert UNetConfig(image_size=12, window_size=3, channel_mult=(1, 2, 4)).alignment == 12


# --------------------------------------------------------------------------- the network at work


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 8), (8, 24)])
@torch.no_grad()
def test_any_aligned_size_goes_through(height, width):
    x, steps, lq = inputs(1, height, width)
    assert toy.network()(x, steps, lq).shape == x.shape


@pytest.mark.parametrize(("height", "width"), [(12, 8), (8, 9), (4, 8), (1, 1)])
def test_other_sizes_are_refused(height, width):
    with pytest.raises(ValueError, match=f"{height}, {width}.*pad it to multiples of 8"):
        toy.network()(*inputs(1, height, width))


def test_levels_without_attention_need_alignment_too():
    """Where no window complains, a skip would not fit what is enlarged."""
    model = UNetModelSwin(
        replace(toy.CONFIG, channel_mult=(1, 2, 2), num_res_blocks=1, image_size=16, lq_size=16)
    )
    with pytest.raises(ValueError, match="multiples of 16"):
        model(*inputs(1, 14, 14))


@torch.no_grad()
def test_samples_of_a_batch_do_not_see_each_other():
    model, (x, steps, lq) = toy.network(), inputs(3)
    together = model(x, steps, lq)
    for i in range(3):
        alone = model(x[i : i + 1], steps[i : i + 1], lq[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_step_and_low_quality_picture_both_matter():
    model, (x, steps, lq) = toy.network(), inputs(1)
    out = model(x, steps, lq)
    assert not torch.allclose(model(x, steps + 1, lq), out, atol=1e-4)
    assert not torch.allclose(model(x, steps, -lq), out, atol=1e-4)


@pytest.mark.parametrize("scale_shift", [True, False])
def test_gradients_reach_every_parameter(scale_shift):
    model = toy.network(replace(toy.CONFIG, use_scale_shift_norm=scale_shift))
    model(*inputs()).square().mean().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@torch.no_grad()
def test_a_new_residual_block_is_its_skip():
    """Its last convolution starts at zero, as in the released code."""
    block = UNetModelSwin(toy.CONFIG).input_blocks[1][0]
    x = torch.randn(1, 16, 8, 8)
    assert torch.equal(block(x, torch.randn(1, 64)), x)


@torch.no_grad()
def test_features_are_what_the_encoder_hands_down():
    model, (x, steps, lq) = toy.network(), inputs()
    shapes = [tuple(f.shape) for f in model.features(x, steps, lq)]
    assert shapes == [(2, 16, 4, 4), (2, 32, 4, 4), (2, 32, 4, 4)]
    with torch.device("meta"):
        latent = torch.empty(1, 3, 64, 64)
        maps = on_meta(REALSR).features(latent, torch.zeros(1), latent)
    assert [m.shape[-1] for m in maps] == [32, 16, 8, 8, 8]


# --------------------------------------------------------------------------- conditions


def test_the_time_embedding_has_cosines_of_the_raw_step_first():
    emb = timestep_embedding(torch.tensor([0, 14]), 8)
    assert emb[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    frequencies = 10000.0 ** -(torch.arange(4) / 4)
    torch.testing.assert_close(emb[1, :4], (14 * frequencies).cos())
    torch.testing.assert_close(emb[1, 4:], (14 * frequencies).sin())


def test_the_faces_condition_is_brought_down_to_128_channels():
    extractor, channels = condition_extractor(
        image_size=64, lq_size=512, lq_channels=3, cond_mask=False
    )
    assert channels == 128
    assert [m.op.out_channels for m in extractor if isinstance(m, Downsample)] == [32, 64, 128]
    assert extractor(torch.zeros(1, 3, 32, 16)).shape == (1, 128, 4, 2)


def test_a_low_quality_picture_of_the_latents_size_is_taken_as_it_is():
    extractor, channels = condition_extractor(
        image_size=64, lq_size=64, lq_channels=3, cond_mask=True
    )
    x = torch.randn(1, 4, 2, 2)
    assert channels == 4
    assert extractor(x) is x


@pytest.mark.parametrize("lq_size", [32, 96, 100])
def test_other_ratios_are_refused(lq_size):
    with pytest.raises(ValueError, match=f"lq_size {lq_size} is no power of two times"):
        condition_extractor(image_size=64, lq_size=lq_size, lq_channels=3, cond_mask=False)


@torch.no_grad()
def test_a_mask_for_inpainting_is_part_of_the_condition():
    model = toy.network(replace(toy.CONFIG, cond_mask=True, lq_size=32))
    x, steps, _ = inputs(1)
    lq, mask = torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 32, 32)
    assert not torch.allclose(model(x, steps, lq, mask), model(x, steps, lq, mask + 1))
    with pytest.raises(ValueError, match="needs a mask"):
        model(x, steps, lq)
    with pytest.raises(ValueError, match="takes no mask"):
        toy.network()(*inputs(1), torch.zeros(1, 1, 8, 8))


def test_a_low_quality_picture_of_another_size_is_refused():
    x, steps, _ = inputs(1)
    with pytest.raises(ValueError, match=r"\(8, 8\) needs lq of \(8, 8\) pixels, got \(32, 32\)"):
        toy.network()(x, steps, torch.zeros(1, 3, 32, 32))


# --------------------------------------------------------------------------- configurations


def test_a_config_survives_as_plain_data():
    assert SwinUNetConfig.of(toy.CONFIG.to_dict()) == toy.CONFIG
    assert SwinUNetConfig.of({"channel_mult": [1, 2, 2, 4], "dims": 2}) == REALSR
    assert SwinUNetConfig(num_res_blocks=2).res_blocks == (2, 2, 2, 2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"chanel_mult": [1]}, "unknown network option 'chanel_mult'; known: image_size"),
        ({"cond_lq": False}, "cond_lq has to be True"),
        ({"resblock_updown": True}, "resblock_updown has to be False"),
        ({"num_res_blocks": [2, 2]}, "one number for each of the 4 levels"),
        ("realsr", "expected SwinUNetConfig or a mapping, got str"),
    ],
)
def test_a_wrong_description_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        on_meta(config)


def test_recomputable_buffers_are_never_taken_from_a_file():
    model = toy.network()
    state = model.state_dict()
    other = {
        name: torch.zeros(1) if name.endswith("attn_mask") else value
        for name, value in state.items()
        if not name.endswith("relative_position_index")
    }
    rebuilt = rebuild_buffers(model, other)
    assert rebuilt.keys() == state.keys()
    assert all(torch.equal(rebuilt[name], state[name]) for name in state)


def test_a_network_may_be_told_the_latent_in_place_of_the_picture():
    small = {
        "image_size": 8,
        "model_channels": 16,
        "channel_mult": (1, 2),
        "num_res_blocks": (1, 1),
        "attention_resolutions": (8,),
        "num_head_channels": 8,
        "swin_embed_dim": 16,
        "window_size": 4,
        "lq_size": 8,
        "norm_groups": 4,
    }
    latent = SwinUNetConfig.of({**small, "in_channels": 8, "out_channels": 8, "lq_channels": 8})
    network = UNetModelSwin(latent).eval()
    x, z_y = torch.randn(2, 1, 8, *[latent.image_size] * 2).unbind()
    with torch.no_grad():
        assert network(x, torch.tensor([3]), z_y).shape == x.shape
    with pytest.raises(ValueError, match=r"3 \(a picture\) or 8 \(its latent\), got 5"):
        UNetModelSwin({**latent.to_dict(), "lq_channels": 5})
    with pytest.raises(ValueError, match="a latent, of its size already"):
        UNetModelSwin({**latent.to_dict(), "lq_size": 2 * latent.image_size})
