"""The binary sets, their gradients, the Maxout and the schedule, as statements about the paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adabin.layers import (
    AdaBinConv2d,
    Maxout,
    binarize_activation,
    binarize_weight,
    gradient_schedule,
    set_gradient_schedule,
    weight_statistics,
)


def h(u: torch.Tensor) -> torch.Tensor:
    """Bi-Real Net's polynomial, whose derivative stands for the sign's."""
    inside = torch.where(u < 0, u * u + 2 * u, 2 * u - u * u)
    return torch.where(u.abs() < 1, inside, u.sign())


@pytest.mark.parametrize("form", ["code", "paper"])
def test_activations_take_two_values_around_the_threshold(form: str) -> None:
    alpha, beta = torch.tensor(0.5), torch.tensor(0.2)
    y = binarize_activation(torch.tensor([-1.0, 0.1, 0.3, 2.0]), alpha, beta, form=form)
    centre = 0.5 * 0.2 if form == "code" else 0.2
    torch.testing.assert_close(y, torch.tensor([-0.5, -0.5, 0.5, 0.5]) + centre)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_the_activation_gradient_is_that_of_the_polynomial(form: str) -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    alpha = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    beta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    g = torch.randn_like(x)
    ours = torch.autograd.grad(binarize_activation(x, alpha, beta, form=form), (x, alpha, beta), g)
    u = (x - beta) / alpha
    # The straight-through trick of the authors: the value of the sign, the gradient of h.
    q = u.sign().detach() - h(u).detach() + h(u)
    theirs = torch.autograd.grad(
        alpha * (q + beta) if form == "code" else alpha * q + beta, (x, alpha, beta), g
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_an_input_on_the_threshold_gives_the_centre() -> None:
    y = binarize_activation(torch.tensor([0.2]), torch.tensor(0.5), torch.tensor(0.2))
    torch.testing.assert_close(y, torch.tensor([0.1]))


def test_equalised_weights_keep_mean_and_population_deviation_of_the_two_levels() -> None:
    w = torch.randn(4, 3, 3, 3, dtype=torch.float64) + 0.3
    binary = binarize_weight(w)
    alpha, beta = weight_statistics(w)
    torch.testing.assert_close(alpha.flatten(), w.flatten(1).std(1, correction=0))
    low, high = binary.amin((1, 2, 3)), binary.amax((1, 2, 3))
    torch.testing.assert_close((high - low) / 2, alpha.flatten())
    torch.testing.assert_close((high + low) / 2, beta.flatten())


@pytest.mark.parametrize(("t", "k"), [(0.1, 10.0), (4.0, 1.0)])
def test_the_weight_gradient_runs_through_mean_and_deviation(t: float, k: float) -> None:
    w = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    g = torch.randn_like(w)
    (ours,) = torch.autograd.grad(binarize_weight(w, t=t, k=k), w, g)
    beta = w.mean((1, 2, 3), keepdim=True)
    alpha = ((w - beta) ** 2).mean((1, 2, 3), keepdim=True).sqrt()
    hat = (w - beta) / alpha
    soft = k * torch.tanh(t * hat)
    sign = hat.sign().detach() - soft.detach() + soft
    (theirs,) = torch.autograd.grad(alpha * sign + beta, w, g)
    torch.testing.assert_close(ours, theirs)


def test_the_comparison_set_is_sign_times_mean_magnitude() -> None:
    w = torch.randn(2, 3, 3, 3)
    expected = w.sign() * w.abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(binarize_weight(w, weight_set="l1"), expected)


def test_a_layer_with_both_sides_off_is_a_plain_convolution() -> None:
    layer = AdaBinConv2d(3, 4, 3, padding=1, a_bit=32, w_bit=32)
    x = torch.randn(1, 3, 5, 5)
    plain = nn.functional.conv2d(x, layer.weight, padding=1)
    assert torch.equal(layer(x), plain)


def test_padding_holds_zero_not_a_binary_value() -> None:
    layer = AdaBinConv2d(1, 1, 3, padding=1, w_bit=32)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.binary_a.beta_a.fill_(0.5)
    y = layer(torch.full((1, 1, 3, 3), 9.0))
    torch.testing.assert_close(y[0, 0, 0, 0], torch.tensor(4 * 1.5))  # four taps inside
    torch.testing.assert_close(y[0, 0, 1, 1], torch.tensor(9 * 1.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_binarised_in_float32(dtype: torch.dtype) -> None:
    alpha, beta = torch.tensor(1.0), torch.tensor(1e-4)
    assert binarize_activation(torch.zeros(3, dtype=dtype), alpha, beta).dtype == torch.float32


def test_maxout_has_two_slopes_per_channel() -> None:
    layer = Maxout(2)
    with torch.no_grad():
        layer.pos_scale.copy_(torch.tensor([1.0, 2.0]))
    y = layer(torch.tensor([-4.0, 3.0]).expand(1, 2, 1, 2))
    torch.testing.assert_close(y, torch.tensor([[[[-1.0, 3.0]], [[-1.0, 6.0]]]]))


def test_the_estimator_starts_as_the_identity_and_sharpens() -> None:
    for epoch in (0, 100, 299):
        t, k = gradient_schedule(epoch, 400)
        assert t * k == pytest.approx(1, rel=1e-6)
    assert gradient_schedule(300, 400) == (1.0, 1.0)
    assert gradient_schedule(399, 400)[0] > 9


def test_the_schedule_reaches_every_layer() -> None:
    model = nn.Sequential(AdaBinConv2d(2, 2, 3), nn.Sequential(AdaBinConv2d(2, 2, 3)))
    t, k = set_gradient_schedule(model, 3, 4)
    assert [(m.t, m.k) for m in model.modules() if isinstance(m, AdaBinConv2d)] == [(t, k)] * 2
