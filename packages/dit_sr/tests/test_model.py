"""The network: sizes of the sheet, conditionings, AdaFM inside, sizes of pictures, gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dit_sr import VARIANTS, Config, build
from dit_sr.model import CONDITIONINGS, Conditioning, DiTBlock
from papers_shared.complexity import count_parameters
from papers_shared.diffusion.swin import SwinBlock, Windows
from papers_shared.kernels.adafm import adafm

from .conftest import TINY, random_network


def on_meta(config: Config) -> nn.Module:
    with torch.device("meta"):
        return build(config)


def inputs(batch: int = 2, height: int = 16, width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    x, lq = torch.randn(2, batch, 3, height, width)
    return x, torch.arange(batch), lq


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "parameters", "entries"),
    [("realsr", 60_789_631, 1152), ("realsr_lite", 30_894_862, 648), ("faceir", 61_127_652, 1164)],
)
def test_full_size_has_60_79_million_parameters(
    variant: str, parameters: int, entries: int
) -> None:
    model = on_meta(VARIANTS[variant])
    assert count_parameters(model) == parameters
    assert len(model.state_dict()) == entries


def test_the_small_network_has_1_75_million_parameters() -> None:
    assert round(count_parameters(on_meta(VARIANTS["small"])) / 1e6, 2) == 1.75


@pytest.mark.parametrize(("variant", "blocks"), [("realsr", 58), ("realsr_lite", 31)])
def test_the_transformer_blocks_are_equally_wide_at_all_resolutions(
    variant: str, blocks: int
) -> None:
    model = on_meta(VARIANTS[variant])
    found = [m for m in model.modules() if isinstance(m, SwinBlock)]
    assert len(found) == blocks
    assert {m.norm1.num_channels for m in found} == {VARIANTS[variant].swin_embed_dim}


@pytest.mark.parametrize(
    ("conditioning", "full", "lite"), [("adaln", 86.37, 39.80), ("adaln_zero", 100.64, 44.89)]
)
def test_adaln_in_adafms_place_would_cost_40_to_65_percent_more_parameters(
    conditioning: str, full: float, lite: float
) -> None:
    for variant, millions in (("realsr", full), ("realsr_lite", lite)):
        config = replace(VARIANTS[variant], conditioning=conditioning)
        assert round(count_parameters(on_meta(config)) / 1e6, 2) == millions


def test_adafms_conditioning_is_2_97_million_parameters() -> None:
    bare = replace(VARIANTS["realsr"], conditioning="none")
    difference = count_parameters(on_meta(VARIANTS["realsr"])) - count_parameters(on_meta(bare))
    assert difference == 58 * 2 * (640 * 40 + 40)


def test_lites_deepest_level_has_a_stage_in_the_middle_alone() -> None:
    names = on_meta(VARIANTS["realsr_lite"]).state_dict()
    assert not any(name.startswith("input_blocks.7.") for name in names)
    assert "output_blocks.1.1.conv.weight" in names
    assert "middle_block.0.blocks.3.attn.qkv.weight" in names


@pytest.mark.parametrize(
    ("config", "multiple"),
    [
        (VARIANTS["realsr"], 64),
        (VARIANTS["realsr_lite"], 64),
        (VARIANTS["faceir"], 64),
        (VARIANTS["small"], 16),
        (TINY, 8),
        (replace(TINY, fft_patch_size=8), 16),  # patches larger than windows
        (replace(TINY, window_size=8), 16),
        (replace(TINY, image_size=24, lq_size=24, window_size=4, fft_patch_size=6), 24),
    ],
)
def test_alignment_fits_windows_and_adafms_patches(config: Config, multiple: int) -> None:
    assert config.alignment == multiple


# --- the block ----------------------------------------------------------------------------------


def block_of(conditioning: Conditioning, patch_size: int = 4) -> DiTBlock:
    block = DiTBlock(
        16,
        embedding=12,
        patch_size=patch_size,
        conditioning=conditioning,
        side=16,
        window_size=4,
        shift=True,
        num_heads=2,
        norm_groups=4,
    )
    return block.eval()


@pytest.mark.parametrize("patch_size", [2, 4, 8])
@torch.no_grad()
def test_adafm_follows_each_norm_with_gains_from_the_time_embedding(patch_size: int) -> None:
    block, windows = block_of("adafm", patch_size), Windows(8, 16, 4)
    picture, emb = torch.randn(2, 16, 8, 16), torch.randn(2, 12)

    def tokens_of(x: Tensor) -> Tensor:
        return windows.split(x.permute(0, 2, 3, 1))

    def normed(norm: nn.GroupNorm, tokens: Tensor, linear: nn.Module) -> Tensor:
        x = norm(windows.join(tokens).permute(0, 3, 1, 2))
        gains = linear(nn.functional.silu(emb))
        return tokens_of(adafm(x, gains, patch_size=patch_size, backend="reference"))

    x = tokens_of(picture)
    x = x + block.attend(normed(block.norm1, x, block.adaLN_scale_msa[1]), windows)
    x = x + block.mlp(normed(block.norm2, x, block.adaLN_scale_mlp[1]))
    ours = block(tokens_of(picture), emb, windows)
    torch.testing.assert_close(ours, x, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_matrix_form_of_adafm_gives_what_the_fourier_form_gives(network: nn.Module) -> None:
    given = inputs(2, 16, 24)
    results = []
    for backend in ("matrix", "reference"):
        for module in network.modules():
            if isinstance(module, DiTBlock):
                module.backend = backend
        results.append(network(*given))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_adaln_zero_blocks_start_as_the_identity() -> None:
    windows, tokens = Windows(8, 8, 4), torch.randn(2, 4, 16, 16)
    assert torch.equal(block_of("adaln_zero")(tokens, torch.randn(2, 12), windows), tokens)
    others: tuple[Conditioning, ...] = ("adafm", "adaln", "none")
    for other in others:
        assert not torch.equal(block_of(other)(tokens, torch.randn(2, 12), windows), tokens)


@torch.no_grad()
def test_adaln_shifts_and_scales_the_normalised_tokens() -> None:
    block, windows = block_of("adaln"), Windows(8, 8, 4)
    tokens, emb = torch.randn(1, 4, 16, 16), torch.randn(1, 12)
    shift1, scale1, shift2, scale2 = block.adaLN_modulation(emb).chunk(4, dim=-1)

    def normed(norm: nn.GroupNorm, x: Tensor) -> Tensor:
        return norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    x = tokens + block.attend((1 + scale1) * normed(block.norm1, tokens) + shift1, windows)
    x = x + block.mlp((1 + scale2) * normed(block.norm2, x) + shift2)
    torch.testing.assert_close(block(tokens, emb, windows), x, atol=1e-5, rtol=1e-4)


# --- the network at work ------------------------------------------------------------------------


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@torch.no_grad()
def test_the_step_matters_unless_blocks_are_not_conditioned(conditioning: str) -> None:
    model = random_network(replace(TINY, conditioning=conditioning))
    x, _, lq = inputs(1)
    outputs = [model(x, torch.tensor([t]), lq) for t in (0, 9)]
    assert torch.equal(*outputs) == (conditioning == "none")


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 40), (24, 8)])
@torch.no_grad()
def test_any_aligned_size_goes_through(network: nn.Module, height: int, width: int) -> None:
    x, steps, lq = inputs(1, height, width)
    assert network(x, steps, lq).shape == x.shape


@pytest.mark.parametrize(("height", "width"), [(12, 16), (16, 20), (1, 1)])
def test_other_sizes_are_refused(network: nn.Module, height: int, width: int) -> None:
    with pytest.raises(ValueError, match="pad it to multiples of 8"):
        network(*inputs(1, height, width))


@torch.no_grad()
def test_the_faces_network_takes_pictures_eight_times_the_latent() -> None:
    with torch.device("meta"):
        model = build(VARIANTS["faceir"])
        out = model(torch.empty(1, 8, 64, 64), torch.zeros(1), torch.empty(1, 3, 512, 512))
    assert out.shape == (1, 8, 64, 64)


@torch.no_grad()
def test_samples_of_a_batch_do_not_see_each_other(network: nn.Module) -> None:
    x, steps, lq = inputs(3)
    together = network(x, steps, lq)
    for i in range(3):
        alone = network(x[i : i + 1], steps[i : i + 1], lq[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_gradients_reach_every_parameter(conditioning: str) -> None:
    model = random_network(replace(TINY, conditioning=conditioning))
    model(*inputs()).square().mean().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # What nothing is conditioned on is not learned, and several processes are to know it.
    assert [n for n in still if not n.startswith("time_embed")] == []
    assert bool(still) == (conditioning == "none")
    assert still == [name for name, p in model.named_parameters() if not p.requires_grad]


@torch.no_grad()
def test_dropout_acts_in_training_only() -> None:
    model, given = random_network(replace(TINY, dropout=0.5)), inputs()
    assert torch.equal(model(*given), model(*given))
    model.train()
    assert not torch.equal(model(*given), model(*given))


@torch.no_grad()
def test_the_masks_of_the_release_and_of_swin_differ_where_windows_shift(tiny: Config) -> None:
    given = inputs()
    released, swin = (random_network(replace(tiny, mask=m))(*given) for m in ("released", "swin"))
    assert not torch.allclose(released, swin, atol=1e-4)


# --- configurations -----------------------------------------------------------------------------


def test_the_authors_configuration_is_read() -> None:
    theirs = {
        "image_size": 64,
        "in_channels": 3,
        "model_channels": 160,
        "out_channels": 3,
        "attention_resolutions": [64, 32, 16, 8],
        "dropout": 0.1,
        "channel_mult": [1, 2, 2, 4],
        "conv_resample": True,
        "dims": 2,
        "use_fp16": False,
        "num_head_channels": 32,
        "swin_depth": 6,
        "swin_embed_dim": 192,
        "window_size": 8,
        "mlp_ratio": 4,
        "cond_lq": True,
        "lq_size": 64,
    }
    assert Config.of(theirs) == VARIANTS["realsr"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_config_survives_as_plain_data(variant: str) -> None:
    assert Config.of(VARIANTS[variant].to_dict()) == VARIANTS[variant]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"swin_dept": 6}, "unknown network option 'swin_dept'"),
        ({"conditioning": "film"}, "'film' is none of adafm, adaln, adaln_zero, none"),
        ({"swin_embed_dim": 200, "norm_groups": 8, "num_head_channels": 66}, "3 heads"),
    ],
)
def test_a_wrong_description_is_refused(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        build(config)
