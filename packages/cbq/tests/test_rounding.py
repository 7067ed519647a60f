"""LoRA-Rounding, the windows and the losses: the identities of the method."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cbq.layers import CBQLinear, Start
from cbq.losses import Distance, homologous
from cbq.rounding import adaround_logits, beta_schedule, commitment, rectified_sigmoid
from cbq.settings import preset
from cbq.windows import finished_after, windows
from papers_shared.quantization import GridRule, QuantizeToken, gptq, round_to_nearest


def layer(kind="adaround", *, rank=5, bits=3, weight=None, **options):
    linear = nn.Linear(24, 10, bias=False)
    if weight is None:
        weight = torch.randn(10, 24, generator=torch.Generator().manual_seed(0))
    grid = GridRule(bits, search="mse")(weight)
    generator = torch.Generator().manual_seed(1)
    return CBQLinear(linear, Start(weight, grid, kind), rank=rank, generator=generator, **options)


def test_v0_gives_the_fractional_part() -> None:
    fraction = torch.linspace(0, 0.999, 50)
    torch.testing.assert_close(rectified_sigmoid(adaround_logits(fraction)), fraction)


@pytest.mark.parametrize("rank", [0, 5])
def test_hardened_at_once_it_is_rounding_to_nearest(rank) -> None:
    weight = torch.randn(10, 24, generator=torch.Generator().manual_seed(0))
    made = layer(weight=weight, rank=rank)
    nearest = round_to_nearest(weight, GridRule(3, search="mse"))
    assert torch.equal(made.harden().codes, nearest.codes)
    assert torch.equal(made.weight(), nearest.dequantize())
    assert torch.equal(made.harden().dequantize(), nearest.dequantize())


def test_from_compensated_columns_it_is_gptq() -> None:
    generator = torch.Generator().manual_seed(2)
    weight, x = (torch.randn(n, 24, generator=generator) for n in (10, 200))
    x[:, :4] += x[:, 4:8]
    result = gptq(weight, x.T @ x, GridRule(3, search="mse"))
    made = CBQLinear(nn.Linear(24, 10), Start(result.compensated, result.grid, "gptq"))
    assert torch.equal(made.harden().codes, result.codes)
    assert (made.harden().codes != round_to_nearest(weight, GridRule(3, search="mse")).codes).any()


def test_zero_start_is_one_half_everywhere_within_the_range() -> None:
    soft = layer("zero").soft_rounding()
    inside = soft == 0.5
    assert inside.float().mean() > 0.8
    assert ((soft == 0) | (soft == 1))[~inside].all()


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("rank", [0, 5])
def test_gradients_are_those_of_the_formula(rank, hard) -> None:
    made = layer(rank=rank)
    made.hard = hard
    if rank:
        nn.init.normal_(made.A2, generator=torch.Generator().manual_seed(3))
    else:
        nn.init.normal_(made.V, generator=torch.Generator().manual_seed(3))
    learned = [p for n, p in made.named_parameters() if n != "act_factor"]
    soft = rectified_sigmoid(made.logits())
    added = (made.logits() >= 0).float() + soft - soft.detach() if hard else soft
    plain = ((made.lower + added) * (made.step_0 * made.step_ratio)).flatten(1)
    grad = torch.randn(plain.shape, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(made.weight(), plain)
    for ours, theirs in zip(
        torch.autograd.grad(made.weight(), learned, grad),
        torch.autograd.grad(plain, learned, grad),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert ours.abs().max() > 0


def test_what_is_hardened_is_what_was_computed() -> None:
    made = layer(act_bits=4)
    with torch.no_grad():
        made.A2.normal_(generator=torch.Generator().manual_seed(5))
        made.step_ratio.mul_(1.01)
        hard = made.harden()
        assert hard.codes.min() >= 0
        assert hard.codes.max() <= 7
        scale = hard.grid.scale
        assert torch.equal(scale.half().float(), scale)
        torch.testing.assert_close(hard.dequantize(), made.weight(), rtol=1e-3, atol=0)


def test_floor_anew_follows_the_step() -> None:
    fixed, moving = layer(), layer(refloor=True)
    assert torch.equal(fixed.lower_codes(), moving.lower_codes())
    with torch.no_grad():
        fixed.step_ratio.mul_(1.5)
        moving.step_ratio.mul_(1.5)
    assert not torch.equal(fixed.lower_codes(), moving.lower_codes())


def test_commitment_and_its_schedule() -> None:
    assert commitment(torch.tensor([0.0, 1.0, 0.5]), 4.0).tolist() == [0, 0, 1]
    values = [beta_schedule(step, 100) for step in (0, 19, 20, 60, 100)]
    assert values == [0, 0, 20, 11, 2]


def test_the_activation_factor_has_lsqs_gradient() -> None:
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(6)).requires_grad_()
    factor = torch.tensor([0.7], requires_grad=True)
    y = QuantizeToken.apply(x, factor, 4)
    y.sum().backward()
    low, high = x.detach().aminmax(dim=-1, keepdim=True)
    spread = (high - low) / 15
    zero = (-low / spread).round()
    position = x.detach() / (spread * 0.7)
    units = (position.round() + zero).clamp(0, 15) - zero
    inside = position.round() == units
    assert 0 < inside.float().mean() < 1
    assert torch.equal(x.grad, inside.float())
    expected = ((units - position * inside) * spread).sum()
    torch.testing.assert_close(factor.grad, expected[None])
    assert len(torch.unique(y[0])) <= 16


# ---- windows and losses


def test_the_last_window_is_cut_at_the_last_block() -> None:
    assert windows(8, size=3, overlap=1) == [range(3), range(2, 5), range(4, 7), range(6, 8)]
    assert windows(30)[-1] == range(28, 30)
    assert len(windows(30)) == 29
    assert windows(1) == [range(1)]
    with pytest.raises(ValueError, match="overlap"):
        windows(4, size=2, overlap=2)


@pytest.mark.parametrize("blocks", [1, 2, 5, 8])
@pytest.mark.parametrize(("size", "overlap"), [(1, 0), (2, 0), (2, 1), (3, 1), (4, 3)])
def test_every_block_is_hardened_once_in_order_and_not_before_its_last_window(
    blocks, size, overlap
) -> None:
    plan = windows(blocks, size=size, overlap=overlap)
    done = finished_after(plan)
    assert [i for part in done for i in part] == list(range(blocks))
    for index, part in enumerate(done):
        later = {i for window in plan[index + 1 :] for i in window}
        assert not later & set(part)
        assert set(part) <= set(plan[index])


def test_both_terms_coincide_on_the_same_stream_and_vanish_for_float_blocks() -> None:
    generator = torch.Generator().manual_seed(7)
    target, output = (torch.randn(2, 5, 16, generator=generator) for _ in range(2))
    for distance in (Distance(), Distance("mean", kl=1.0), Distance("sum", l2_weight=0, kl=1.0)):
        one = homologous(distance, output, target, None)
        assert one > 0
        torch.testing.assert_close(homologous(distance, output, target, target), 2 * one)
        assert homologous(distance, target, target, target).abs() < 1e-6
    with pytest.raises(ValueError, match="needs a target"):
        homologous(Distance(), output, None, None)


def test_the_token_loss_does_not_care_how_large_a_token_is() -> None:
    generator = torch.Generator().manual_seed(8)
    target, output = (torch.randn(1, 6, 16, generator=generator) for _ in range(2))
    large = torch.ones(1, 6, 1)
    large[0, 2] = 500.0
    token, mean = Distance("token"), Distance("mean")
    torch.testing.assert_close(token(large * target, large * output), token(target, output))
    assert mean(large * target, large * output) > 1e4 * mean(target, output)
    torch.testing.assert_close(Distance("sum")(target, output), 16 * mean(target, output))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 1}, "bits=1"),
        ({"start": "nearest"}, "one of zero, adaround, gptq"),
        ({"window": 2, "overlap": 2}, "overlap"),
        ({"clean_term": False, "same_term": False}, "no target"),
    ],
)
def test_impossible_settings_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        preset("best", **changes)
