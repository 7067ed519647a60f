"""Rep-LeFFN and its merged form."""

from __future__ import annotations

import copy

import pytest
import torch

from ipt_v2.feedforward import Mlp, RepLeFFN, merge
from papers_shared.complexity import count_parameters


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("rep", "identity"), [(0, None), (0, True), (1, None), (1, False), (3, None)]
)
def test_merged_nets_compute_the_same_from_untouched_ones(rep, identity, bias):
    net = RepLeFFN(8, 2.66, bias=bias, rep=rep, identity=identity)
    before = copy.deepcopy(net.state_dict())
    x = torch.randn(2, 8, 9, 7)
    with torch.no_grad():
        y = net(x)
        merged = merge(net)
        error = (merged(x) - y).abs().max() / y.abs().max()
        again = merge(merged)(x)
    assert error < 1e-5
    assert torch.equal(again, merged(x))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    C, E = 8, 21
    assert count_parameters(merged) == 2 * C * E + 25 * E + (2 * E + C if bias else 0)


def test_the_identity_is_a_one_in_the_centre():
    net = RepLeFFN(4, 2, rep=3)
    for parameter in net.dwconv.parameters():
        torch.nn.init.zeros_(parameter)
    kernel = merge(net).dwconv.weight
    expected = torch.zeros(8, 1, 5, 5)
    expected[:, :, 2, 2] = 1
    assert torch.equal(kernel, expected)


def test_the_mode_of_a_net_is_kept_and_changing_it_changes_nothing():
    net = RepLeFFN(4, 2)
    assert merge(net).training
    assert not merge(net.eval()).training
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(net(x), net.train()(x))


def test_the_other_nets_have_the_authors_names():
    assert list(Mlp(4, 2).state_dict()) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    names = list(Mlp(4, 2, kernel_size=3).state_dict())
    assert names[2:4] == ["dwconv.depthwise_conv.0.weight", "dwconv.depthwise_conv.0.bias"]
    assert Mlp(4, 2, kernel_size=3)(torch.randn(1, 4, 5, 6)).shape == (1, 4, 5, 6)
    with pytest.raises(ValueError, match="rep=2"):
        RepLeFFN(4, 2, rep=2)
