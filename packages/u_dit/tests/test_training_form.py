"""Training with merged branches and in bfloat16 gives the gradients of the plain network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from papers_shared.kernels.depthwise_conv2d import depthwise_conv2d
from papers_shared.networks.rep_ffn import RepLeFFN, merge_in_training


@pytest.mark.parametrize("rep", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_merged_branches_have_the_same_outputs_and_gradients(rep: int, bias: bool) -> None:
    net = RepLeFFN(8, 2, rep=rep, bias=bias)
    x = torch.randn(2, 8, 6, 6)
    found = []
    for merged in (False, True):
        merge_in_training(net, merged)
        net.zero_grad()
        y = net(x)
        y.square().sum().backward()
        found.append([y.detach(), *(p.grad.clone() for p in net.parameters())])
    for plain, merged in zip(*found, strict=True):
        torch.testing.assert_close(merged, plain, rtol=1e-4, atol=1e-5)


def test_depthwise_gradients_in_bfloat16_are_those_of_float32() -> None:
    x, layer = torch.randn(2, 8, 6, 6), nn.Conv2d(8, 8, 5, padding=2, groups=8)
    found = []
    for reduced in (False, True):
        given = x.clone().requires_grad_()
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            y = depthwise_conv2d(given, layer.weight, layer.bias)
        assert y.dtype == (torch.bfloat16 if reduced else torch.float32)
        y.float().square().sum().backward()
        found.append([y.float(), given.grad, layer.weight.grad, layer.bias.grad])
    for whole, reduced in zip(*found, strict=True):
        assert (reduced - whole).abs().max() < 0.02 * whole.abs().max()
