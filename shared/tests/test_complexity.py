"""Counts that can be done by hand, and the structure of measurements."""

import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from papers_shared.complexity import (
    activation_elements,
    compare_latency,
    count_macs,
    count_parameters,
    measure_latency,
    peak_memory,
)


class Tower(nn.Module):
    """Two modules in a list, one of them used twice, and a product of matrices."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)])
        self.loose = torch.ones(1)  # neither a parameter nor a buffer

    def forward(self, x, scale=None):
        x = self.blocks[0](x) * self.loose
        x = self.blocks[1](self.blocks[1](x))
        tokens = x.flatten(2)
        return tokens @ tokens.transpose(1, 2)


@pytest.mark.parametrize(
    ("module", "shape", "macs"),
    [
        # output elements x kernel x input channels / groups
        (nn.Conv2d(3, 8, 3, padding=1), (1, 3, 10, 12), 8 * 10 * 12 * 9 * 3),
        (nn.Conv2d(8, 16, (3, 1), stride=2, bias=False), (1, 8, 9, 9), 16 * 4 * 5 * 3 * 8),
        (nn.Conv2d(8, 16, 3, groups=4, dilation=2), (2, 8, 9, 9), 2 * 16 * 5 * 5 * 9 * 2),
        (nn.Conv1d(6, 6, 5, groups=6), (1, 6, 20), 6 * 16 * 5),
        # every input element meets every tap of every output channel of its group
        (nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1), (1, 8, 5, 5), 8 * 25 * 16 * 4),
        (nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2), (1, 8, 5, 5), 8 * 25 * 4 * 2),
        # every token
        (nn.Linear(32, 10), (1, 32), 320),
        (nn.Linear(32, 10), (2, 7, 32), 2 * 7 * 320),
        (nn.BatchNorm2d(4), (1, 4, 8, 8), 0),
    ],
)
def test_multiply_accumulates_of_single_modules(module, shape, macs):
    assert count_macs(module, shape).total == macs
    flops = count_macs(module, shape, rule="flop_counter").total
    assert flops == 2 * macs


def test_the_two_rules_differ_in_attention_products_and_name_themselves():
    tower = Tower()
    by_module = count_macs(tower, (1, 3, 8, 8))
    assert by_module.by_module == {"blocks.0": 4 * 64 * 27, "blocks.1": 2 * 4 * 64 * 4}
    assert by_module.total == sum(by_module.by_module.values())
    assert "attention products" in by_module.rule
    by_operator = count_macs(tower, (1, 3, 8, 8), rule="flop_counter")
    product = 4 * 64 * 4
    assert by_operator.by_module == {
        **{name: 2 * count for name, count in by_module.by_module.items()},
        "": 2 * product,
    }
    assert by_operator.total == 2 * (by_module.total + product)
    assert "two for each multiply-accumulate" in by_operator.rule
    with pytest.raises(ValueError, match="unknown rule 'fvcore'; choose from conv_linear"):
        count_macs(tower, (1, 3, 8, 8), rule="fvcore")


class Attention(nn.Module):
    """A convolution, normalized and activated, attention over its pixels, enlarged."""

    def __init__(self, functional):
        super().__init__()
        self.functional = functional
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(4, 8)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Conv2d(8, 2, 1, bias=False)
        self.modules_instead = nn.ModuleList(
            [nn.SiLU(), nn.GELU(), nn.Softmax(dim=-1), nn.Upsample(scale_factor=2)]
        )

    def forward(self, x):
        silu, gelu, softmax, upsample = self.modules_instead
        x = self.norm(self.conv(x))
        x = F.silu(x) if self.functional else silu(x)
        tokens = x.flatten(2).transpose(1, 2).unflatten(-1, (2, 4)).transpose(1, 2)
        tokens = self.qkv(tokens.transpose(1, 2).flatten(2)).unflatten(-1, (3, 2, 4))
        q, k, v = tokens.permute(2, 0, 3, 1, 4)
        if self.functional:
            seen = F.scaled_dot_product_attention(q, k, v)
        else:
            seen = softmax(q @ k.transpose(-2, -1) / 2) @ v
        seen = seen.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:])
        seen = F.gelu(seen) if self.functional else gelu(seen)
        seen = F.interpolate(seen, scale_factor=2) if self.functional else upsample(seen)
        return F.interpolate(self.out(seen), scale_factor=2, mode="bilinear")


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("functional", [True, False])
def test_calflops_rule_counts_calls_whether_of_modules_or_functions(functional, device):
    count = count_macs(Attention(functional), (2, 3, 4, 6), rule="calflops", device=device)
    batch, pixels, heads = 2, 24, 2
    assert count.by_kind == {
        "convolution": 2 * batch * (pixels * 8 * 27 + 4 * pixels * 2 * 8),
        "bias": batch * 8 * pixels,  # the 1x1 convolution has none
        "linear": 2 * batch * pixels * 8 * 24,  # no bias
        "group_norm": 5 * batch * 8 * pixels,
        "silu": batch * 8 * pixels,
        "gelu": batch * 8 * pixels,
        "softmax": batch * heads * pixels**2,
        "upsample": batch * 8 * pixels,  # the input; bilinear is not counted
    }
    assert count.total == sum(count.by_kind.values()) == sum(count.by_module.values())
    assert count.by_module["conv"] == batch * (2 * pixels * 8 * 27 + 8 * pixels)
    own = {"silu", "softmax", "gelu", "upsample"}
    if functional:
        assert count.by_module[""] == sum(count.by_kind[kind] for kind in own)
    else:
        assert count.by_module["modules_instead.2"] == count.by_kind["softmax"]
    assert "attention products" in count.rule


def test_calflops_rule_on_transposed_convolutions_keywords_and_methods():
    class Calls(nn.Module):
        def forward(self, x):
            x = F.conv_transpose2d(
                x, weight=x.new_zeros(4, 3, 2, 2), bias=x.new_zeros(6), stride=2, groups=2
            )
            return F.linear(input=x.softmax(-1), weight=x.new_zeros(5, 10))

    count = count_macs(Calls(), (1, 4, 5, 5), rule="calflops")
    made = 6 * 10 * 10
    assert count.by_kind == {
        "convolution": 2 * 4 * 25 * 3 * 4,
        "bias": made,
        "softmax": made,
        "linear": 2 * 6 * 10 * 5 * 10,
    }


def test_calflops_rule_refuses_what_it_cannot_see_into():
    class Opaque(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    with pytest.raises(ValueError, match=r"nn\.MultiheadAttention; .*rule='flop_counter'"):
        count_macs(Opaque(), (1, 4, 8), rule="calflops")


def test_kinds_of_operations_add_up_to_the_total_under_every_rule():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    macs = {"convolution": 4 * 36 * 27, "linear": 288}
    assert count_macs(net, (1, 3, 8, 8)).by_kind == macs
    flops = count_macs(net, (1, 3, 8, 8), rule="flop_counter").by_kind
    assert flops == {"aten.convolution": 2 * macs["convolution"], "aten.addmm": 2 * macs["linear"]}
    calflops = count_macs(net, (1, 3, 8, 8), rule="calflops").by_kind
    assert calflops == {**{k: 2 * v for k, v in macs.items()}, "bias": 4 * 36}


@pytest.mark.parametrize("rule", ["conv_linear", "flop_counter"])
def test_binary_modules_are_counted_apart(rule):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    one = 1 if rule == "conv_linear" else 2
    count = count_macs(net, (1, 3, 8, 8), rule=rule, is_binary=lambda m: m is net[1])
    assert count.binary == one * 4 * 16 * 36
    assert count.total - count.binary == one * (4 * 36 * 27 + 64 * 2)


def test_inputs_by_shape_by_position_and_by_name_count_alike():
    tower, image = Tower(), torch.zeros(1, 3, 8, 8)
    counts = [count_macs(tower, given) for given in ((1, 3, 8, 8), image, [image], {"x": image})]
    assert len({count.total for count in counts}) == 1


def test_counting_costs_no_memory_and_leaves_the_model_untouched():
    with torch.device("meta"):
        huge = nn.Conv2d(4096, 65536, 3, padding=1)
    assert count_macs(huge, (1, 4096, 2048, 2048)).total == 65536 * 2048**2 * 9 * 4096

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for device in ("meta", "cpu"):
        count_macs(model, (2, 3, 8, 8), device=device)
        count_macs(model, (2, 3, 8, 8), device=device, rule="flop_counter")
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.parameters())


def test_a_network_that_needs_values_is_counted_on_the_cpu():
    class Gate(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum().item() == 0 else x

    with pytest.raises(ValueError, match=r"Gate does not run on the meta device .*device='cpu'"):
        count_macs(Gate(4, 4), (1, 4))
    assert count_macs(Gate(4, 4), (1, 4), device="cpu").total == 16


def test_parameters_are_counted_once_and_trainable_ones_apart():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    first.bias.requires_grad_(False)
    model = nn.Sequential(first, second, nn.BatchNorm1d(4))
    assert count_parameters(model) == 16 + 4 + 4 + 8
    assert count_parameters(model, trainable_only=True) == 16 + 4 + 8


def test_activations_are_the_outputs_of_convolutions():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 2, 2, stride=2))
    assert activation_elements(net, (1, 3, 10, 10)) == 8 * 64 + 2 * 256


def test_latency_has_ordered_percentiles_and_calls_as_often_as_told():
    calls = []
    latency = measure_latency(lambda: calls.append(time.sleep(0.002)), warmup=2, repeats=7)
    assert len(calls) == 9
    assert latency.n == 7
    assert 0.002 <= latency.p10 <= latency.median <= latency.p90
    with pytest.raises(ValueError, match="0 measurements asked for"):
        measure_latency(lambda: None, repeats=0)


def test_functions_are_compared_in_turns_with_a_named_baseline():
    order = []
    functions = {
        "slow": lambda: (order.append("slow"), time.sleep(0.02)),
        "fast": lambda: order.append("fast"),
    }
    compared = compare_latency(functions, baseline="slow", warmup=0, rounds=4)
    assert order == ["slow", "fast", "fast", "slow"] * 2
    assert compared["slow"].speedup == compared["slow"].p10 == compared["slow"].p90 == 1.0
    fast = compared["fast"]
    assert 1 < fast.p10 <= fast.speedup <= fast.p90
    assert fast.latency.n == 4
    with pytest.raises(ValueError, match="no function 'c' to compare with"):
        compare_latency(functions, baseline="c")


def test_peak_memory_is_the_largest_sum_of_living_tensors():
    start = torch.zeros(1000, 256)  # 1,024,000 bytes, there beforehand

    def call():
        first = start + 1
        second = first + 1  # two at once
        del first
        return (second + 1).sum()  # two at once again

    peak = peak_memory(call)
    assert peak.bytes == pytest.approx(2 * 1_024_000, rel=0.01)
    assert "torch.profiler" in peak.protocol
    assert peak_memory(call) == peak


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_peak_and_latency_wait_for_the_kernels():
    start = torch.zeros(1000, 1024, device="cuda")
    peak = peak_memory(lambda: (start + 1) + 1, device="cuda")
    assert peak.bytes == pytest.approx(2 * 4_096_000, rel=0.05)
    big = torch.randn(4096, 4096, device="cuda")
    one = measure_latency(lambda: big @ big, device="cuda").median
    ten = measure_latency(lambda: [big @ big for _ in range(10)], device="cuda").median
    assert ten > 5 * one
