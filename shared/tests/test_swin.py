"""Shifted windows: gathering, both masks, and stages against a plain NCHW reference."""

import pytest
import torch
import torch.nn.functional as F

from papers_shared.diffusion.swin import (
    MASKED,
    Mlp,
    SwinBlock,
    SwinStage,
    WindowAttention,
    Windows,
    _shifted,
    group_norm,
    relative_position_index,
    shift_mask,
)

SIZES = [(8, 8, 4), (8, 12, 4), (16, 8, 8), (4, 4, 4), (6, 9, 3), (4, 20, 4)]


def cut(x, size):
    """(B, H, W, C) -> (B, windows, tokens, C), window by window."""
    rows, columns = range(0, x.shape[1], size), range(0, x.shape[2], size)
    windows = [x[:, r : r + size, c : c + size].flatten(1, 2) for r in rows for c in columns]
    return torch.stack(windows, dim=1)


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_windows_and_their_pixels_are_in_row_major_order_and_join_again(height, width, size):
    x = torch.randn(2, height, width, 3)
    windows = Windows(height, width, size)
    assert torch.equal(windows.split(x), cut(x, size))
    assert windows.split(x).shape[1] == windows.count
    assert torch.equal(windows.join(windows.split(x)), x)


@pytest.mark.parametrize(("height", "width"), [(9, 8), (8, 9), (4, 16)])
def test_a_map_that_does_not_divide_into_windows_is_refused(height, width):
    with pytest.raises(ValueError, match=f"{height}x{width} does not divide into windows of 8x8"):
        Windows(height, width, 8)


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_gathering_equals_rolling_and_cutting(height, width, size):
    shift = size // 2
    x, windows = torch.randn(2, height, width, 3), Windows(height, width, size)
    there, back = _shifted(windows, shift, x.device)
    tokens = windows.split(x).flatten(1, 2)
    shifted = tokens[:, there].unflatten(1, (windows.count, -1))
    assert torch.equal(shifted, cut(x.roll((-shift, -shift), (1, 2)), size))
    assert torch.equal(tokens[:, there][:, back], tokens)


# --------------------------------------------------------------------------- masks


def swin_mask(height, width, size, shift):
    """Swin Transformer's: nine regions are numbered in the rolled map; equal numbers attend."""
    regions, number = torch.zeros(1, height, width, 1), 0
    cuts = (slice(0, -size), slice(-size, -shift), slice(-shift, None))
    for rows in cuts:
        for columns in cuts:
            regions[:, rows, columns] = number
            number += 1
    flat = cut(regions, size)[0, ..., 0]
    return torch.where(flat[:, :, None] != flat[:, None, :], MASKED, 0.0)


def neighbours_mask(height, width, size, shift):
    """What it is for: in the rolled map, tokens attend if they are as far apart as before."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([y, x], dim=-1)[None]
    rolled = cut(places.roll((-shift, -shift), (1, 2)), size)[0]
    plain = cut(places, size)[0]
    moved = (rolled[:, :, None] - rolled[:, None]) - (plain[:, :, None] - plain[:, None])
    return torch.where((moved != 0).any(-1), MASKED, 0.0)


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_the_swin_mask_is_the_textbooks(height, width, size):
    windows, shift = Windows(height, width, size), size // 2
    mask = shift_mask(windows, shift, "swin")
    assert torch.equal(mask, swin_mask(height, width, size, shift))
    assert torch.equal(mask, neighbours_mask(height, width, size, shift))


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_the_released_mask_parts_columns_in_the_last_row_of_windows_only(height, width, size):
    """As the sheet words it: separated iff exactly one of the two columns is >= w - s."""
    shift, across = size // 2, width // size
    mask = shift_mask(Windows(height, width, size), shift, "released")
    expected = torch.zeros_like(mask)
    for window in range(len(mask) - across, len(mask)):
        for i in range(size * size):
            for j in range(size * size):
                if (i % size >= size - shift) != (j % size >= size - shift):
                    expected[window, i, j] = -100
    assert torch.equal(mask, expected)


def test_the_released_mask_is_not_swins():
    windows = Windows(16, 16, 8)
    assert not torch.equal(shift_mask(windows, 4, "released"), shift_mask(windows, 4, "swin"))


def test_masks_made_in_inference_mode_serve_in_training():
    windows = Windows(20, 10, 5)
    with torch.inference_mode():
        shift_mask(windows, 2, "swin")
    x = torch.ones(8, 25, 25, requires_grad=True)
    (x * shift_mask(windows, 2, "swin")).sum().backward()
    assert x.grad is not None


def test_the_position_index_counts_differences():
    index = relative_position_index(8)
    assert index.shape == (64, 64)
    assert index[0, 0] == 7 * 15 + 7
    assert (index.min(), index.max()) == (0, 224)
    assert index[0, 63] == 0  # dy = dx = -7
    assert index[63, 0] == 224
    assert index[9, 8] == 7 * 15 + 8  # dx = 1


# --------------------------------------------------------------------------- a stage


def reference_attention(attn, y, size, shift, kind):
    """Roll, windows, q k v, bias, mask, softmax, roll back: (B, C, H, W)."""
    b, c, height, width = y.shape
    heads, d = attn.num_heads, c // attn.num_heads
    y = y.permute(0, 2, 3, 1).roll((-shift, -shift), (1, 2))
    tokens = cut(y, size)
    qkv = F.linear(tokens, attn.qkv.weight, attn.qkv.bias).unflatten(-1, (3, heads, d))
    q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)
    scores = d**-0.5 * q @ k.transpose(-1, -2)
    bias = attn.relative_position_bias_table[relative_position_index(size)]
    scores = scores + bias.permute(2, 0, 1)
    if shift:
        if kind == "swin":
            mask = swin_mask(height, width, size, shift)
        else:
            mask = shift_mask(Windows(height, width, size), shift, "released")
        scores = scores + mask[None, :, None]
    out = (scores.softmax(-1) @ v).transpose(2, 3).flatten(3)
    out = F.linear(out, attn.proj.weight, attn.proj.bias)
    picture = torch.empty(b, height, width, c)
    for i in range(out.shape[1]):
        r, col = i // (width // size) * size, i % (width // size) * size
        picture[:, r : r + size, col : col + size] = out[:, i].reshape(b, size, size, c)
    return picture.roll((shift, shift), (1, 2)).permute(0, 3, 1, 2)


def convolved(layer, x):
    """A 1x1 convolution of a map (B, C, H, W); the layer itself takes tokens."""
    return F.conv2d(x, layer.weight, layer.bias)


def reference_stage(stage, x, size, shifts, kind):
    x = convolved(stage.patch_embed.proj, x)
    for block, shift in zip(stage.blocks, shifts, strict=True):
        y = F.group_norm(x, 4, block.norm1.weight, block.norm1.bias, 1e-5)
        x = x + reference_attention(block.attn, y, size, shift, kind)
        y = F.group_norm(x, 4, block.norm2.weight, block.norm2.bias, 1e-5)
        x = x + convolved(block.mlp.fc2, F.gelu(convolved(block.mlp.fc1, y)))
    return convolved(stage.patch_unembed.proj, x)


def stage_of(side, depth=3, mask="released", **options):
    blocks = [
        SwinBlock(
            16,
            side=side,
            window_size=4,
            shift=k % 2 == 1,
            num_heads=2,
            mlp_ratio=2,
            mask=mask,
            norm_groups=4,
            **options,
        )
        for k in range(depth)
    ]
    stage = SwinStage(6, 16, blocks).eval()
    for parameter in stage.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return stage


@pytest.mark.parametrize("kind", ["released", "swin"])
@pytest.mark.parametrize(("side", "height", "width"), [(8, 8, 8), (8, 12, 4), (8, 8, 16)])
@torch.no_grad()
def test_a_stage_equals_a_plain_reference(side, height, width, kind):
    torch.manual_seed(0)
    stage, x = stage_of(side, mask=kind), torch.randn(2, 6, height, width)
    expected = reference_stage(stage, x, 4, [0, 2, 0], kind)
    torch.testing.assert_close(stage(x, torch.zeros(2, 1)), expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_where_the_window_is_the_nominal_map_nothing_shifts_at_any_size():
    torch.manual_seed(0)
    for side, size in ((4, 4), (2, 2)):
        stage = stage_of(side)
        assert not any("attn_mask" in name for name in stage.state_dict())
        x = torch.randn(1, 6, 8, 8)
        expected = reference_stage(stage, x, size, [0, 0, 0], "released")
        torch.testing.assert_close(stage(x, torch.zeros(1, 1)), expected, atol=2e-5, rtol=1e-4)


def test_odd_blocks_shift_and_keep_the_nominal_mask_for_the_checkpoints():
    state = stage_of(8, depth=4).state_dict()
    assert [name for name in state if "attn_mask" in name] == [
        "blocks.1.attn_mask",
        "blocks.3.attn_mask",
    ]
    assert torch.equal(state["blocks.1.attn_mask"], shift_mask(Windows(8, 8, 4), 2, "released"))


def test_gradients_are_the_references():
    torch.manual_seed(0)
    stage, x = stage_of(8), torch.randn(1, 6, 8, 8)
    wanted = []
    for run in (
        lambda: stage(x, torch.zeros(1, 1)),
        lambda: reference_stage(stage, x, 4, [0, 2, 0], "released"),
    ):
        stage.zero_grad()
        run().square().mean().backward()
        wanted.append({name: p.grad.clone() for name, p in stage.named_parameters()})
    for name, gradient in wanted[0].items():
        torch.testing.assert_close(gradient, wanted[1][name], atol=1e-5, rtol=1e-3, msg=name)


@torch.no_grad()
def test_a_picture_of_a_batch_does_not_see_the_others():
    torch.manual_seed(0)
    stage, x = stage_of(8), torch.randn(3, 6, 8, 12)
    together = stage(x, torch.zeros(3, 1))
    for i in range(3):
        alone = stage(x[i : i + 1], torch.zeros(1, 1))
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)


def test_group_norm_computes_in_float32_and_keeps_the_dtype():
    norm = torch.nn.GroupNorm(4, 16).bfloat16()
    tokens = (1000 + torch.randn(1, 2, 16, 16)).bfloat16()
    out = group_norm(norm, tokens)
    assert out.dtype == torch.bfloat16
    picture = tokens.float().flatten(1, 2).transpose(1, 2)
    expected = F.group_norm(picture, 4).transpose(1, 2).reshape(1, 2, 16, 16)
    torch.testing.assert_close(out.float(), expected, atol=0.02, rtol=0.01)


def test_dropout_acts_behind_attention_and_twice_in_the_mlp():
    torch.manual_seed(0)
    attention = WindowAttention(16, size=4, num_heads=2, dropout=0.5).train()
    mlp, tokens = Mlp(16, 32, dropout=0.5).train(), torch.randn(4, 4, 16, 16)
    for out in (attention(tokens), mlp(tokens)):
        assert (out == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (attention.eval()(tokens) != 0).all()


def test_channels_that_do_not_divide_into_heads_are_refused():
    with pytest.raises(ValueError, match="16 channels do not divide into 3 heads"):
        WindowAttention(16, size=4, num_heads=3)
