"""Merging is exact: seeded weights, after real training steps, all branches, odd sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lipt import Config, DiverseBranchBlock, build, merge
from lipt.hrm import ConvBN, fold_batch_norm, merge_branches


def relative(y: torch.Tensor, expected: torch.Tensor) -> float:
    return ((y - expected).abs().max() / expected.abs().max()).item()


def trained(config: Config, steps: int = 20) -> nn.Module:
    """A network after real steps of Adam, its running statistics those of the data."""
    model = build(config).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(steps):
        x = 255 * torch.rand(2, config.colors, 8, 16)
        target = F.interpolate(x, scale_factor=config.scale)
        loss = F.l1_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [
        {"branches": "hrm"},
        {"branches": "dbb"},
        {"branches": "plain"},
        {"r_expand": 2, "n_share": 0},
        {"colors": 1, "scale": 1},
        {"restore_positions": True, "mask_values": True},
    ],
)
def test_merging_is_exact_after_training(options: dict) -> None:
    config = Config.of({"m_elan": 2, "c_elan": 8} | options)
    model = trained(config)
    with torch.no_grad():
        for size in ((17, 31), (8, 8), (5, 40)):
            x = 255 * torch.rand(3, config.colors, *size)
            merged = merge(model)
            assert relative(merged(x), model(x)) < 1e-5
    assert merged.config.deploy
    assert not model.config.deploy
    assert not [m for m in merged.modules() if isinstance(m, nn.BatchNorm2d | DiverseBranchBlock)]


def test_merging_twice_is_merging_once_and_leaves_the_network_alone(make_network) -> None:
    model = make_network()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    once = merge(model.train())
    twice = merge(once)
    assert model.training
    assert not once.training
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    for name, value in once.state_dict().items():
        assert torch.equal(value, twice.state_dict()[name])


@pytest.mark.parametrize("sobel", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(4, 4), (3, 7), (6, 2)])
def test_a_block_is_one_convolution_to_the_last_digit_of_float64(inputs, outputs, sobel) -> None:
    block = DiverseBranchBlock(inputs, outputs, sobel=sobel).double()
    for _ in range(3):  # statistics that are neither 0 nor 1
        block(3 * torch.randn(4, inputs, 6, 5, dtype=torch.float64) + 2)
    for p in block.parameters():
        if p.requires_grad:
            p.data += 0.3 * torch.randn_like(p)
    kernel, bias = merge_branches(block.eval().state_dict())
    x = torch.randn(2, inputs, 7, 6, dtype=torch.float64)
    with torch.no_grad():
        assert relative(F.conv2d(x, kernel, bias, padding=1), block(x)) < 1e-12


def test_batch_norm_folds_into_the_projection() -> None:
    layer = ConvBN(4, 6).double()
    layer(5 * torch.randn(4, 4, 3, 3, dtype=torch.float64) - 1)
    weight, bias = fold_batch_norm(layer.eval().state_dict())
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        assert relative(F.conv2d(x, weight, bias), layer(x)) < 1e-12


def test_the_border_of_a_branch_is_that_of_its_updated_statistics() -> None:
    """In training too the border is what eval mode's batch norm makes of zero (sheet 3.5)."""
    block = DiverseBranchBlock(2, 2)
    padded = block.dbb_avg.bn(torch.randn(3, 2, 4, 4))
    bn = block.dbb_avg.bn.bn
    expected = bn.bias - bn.running_mean * bn.weight / (bn.running_var + 1e-5).sqrt()
    for edge in (padded[:, :, 0], padded[:, :, -1], padded[..., 0], padded[..., -1]):
        torch.testing.assert_close(edge, expected[None, :, None].expand_as(edge))
    assert expected.abs().max() > 0.001
    (grad,) = torch.autograd.grad(padded[:, :, 0].sum(), bn.bias, allow_unused=True)
    assert grad is None or not grad.any()


def test_channels_last_gives_the_same(make_network) -> None:
    block = DiverseBranchBlock(4, 4).eval()
    x = torch.randn(2, 4, 6, 5)
    y = block(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(y, block(x))
    assert y.is_contiguous(memory_format=torch.channels_last)
