"""What AdaBin adds: two-valued weights and activations whose values adapt to the data.

Notation: ``u`` is the normalised activation, ``q = sign(u)``; ``h`` the piecewise polynomial
whose derivative replaces that of the sign (Bi-Real Net); ``t`` and ``k`` the parameters of the
error-decay estimator for the weights (IR-Net). ``sign(0) = 0`` throughout, as in torch.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from papers_shared.kernels import PackedBinaryConv2d

Form = Literal["code", "paper"]
WeightSet = Literal["equalised", "l1"]


class _BinarizeActivation(torch.autograd.Function):
    """sign with adaptive values; backward is that of h, in closed form."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, beta: Tensor, paper_form: bool) -> Tensor:
        u = (x - beta) / alpha
        ctx.save_for_backward(u, alpha, beta)
        ctx.paper_form = paper_form
        return alpha * u.sign() + beta if paper_form else alpha * (u.sign() + beta)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        u, alpha, beta = ctx.saved_tensors
        slope = (2 - 2 * u.abs()).clamp_(min=0)  # h'(u)
        level = u.sign() if ctx.paper_form else u.sign() + beta
        centre = 1 if ctx.paper_form else alpha
        grad_alpha = (grad * (level - u * slope)).sum().reshape(alpha.shape)
        grad_beta = (grad * (centre - slope)).sum().reshape(beta.shape)
        return grad * slope, grad_alpha, grad_beta, None


def binarize_activation(x: Tensor, alpha: Tensor, beta: Tensor, *, form: Form = "code") -> Tensor:
    """Replace every activation by one of two learned values.

    ``u = (x - beta) / alpha``; the result is ``alpha * (sign(u) + beta)`` in the code's form,
    ``alpha * sign(u) + beta`` in the paper's. The gradient is that of the same expression with
    ``h(u)`` in place of ``sign(u)``: ``h'(u) = max(0, 2 - 2|u|)``.

    Args:
        x: activations of any shape; half precisions are raised to float32.
        alpha: half the distance of the two values, one element.
        beta: the threshold, and the centre up to the form, one element.
        form: ``code`` is what the released checkpoint was trained with.

    Returns:
        a tensor of x's shape with two values (three where x equals beta).

    Source: authors' code; section 3.2 of the paper for its form.
    """
    return _BinarizeActivation.apply(_at_least_float32(x), alpha, beta, form == "paper")


class _EqualiseAndBinarizeWeight(torch.autograd.Function):
    """mean ± std per output channel, with the error-decay gradient in closed form."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, t: float, k: float) -> Tensor:
        alpha, beta = weight_statistics(weight)
        normalised = (weight - beta) / alpha
        ctx.save_for_backward(normalised)
        ctx.t, ctx.k = t, k
        return alpha * normalised.sign() + beta

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (w,) = ctx.saved_tensors
        # dL/dw = e + M(g) - M(e) + w_hat (M(g w_b) - M(e w_hat)), M the mean over one channel:
        # autograd's result, since neither alpha_w nor beta_w is detached.
        e = grad * (ctx.k * ctx.t) * (1 - torch.tanh(ctx.t * w) ** 2)
        scale = _channel_mean(grad * w.sign() - e * w)
        return e + _channel_mean(grad - e) + w * scale, None, None


class _SignWithErrorDecay(torch.autograd.Function):
    """sign; backward k t (1 - tanh(t w)^2) (IR-Net)."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, t: float, k: float) -> Tensor:
        ctx.save_for_backward(w)
        ctx.t, ctx.k = t, k
        return w.sign()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (w,) = ctx.saved_tensors
        return grad * (ctx.k * ctx.t) * (1 - torch.tanh(ctx.t * w) ** 2), None, None


def weight_statistics(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Population standard deviation and mean of every output channel.

    Args:
        weight: (O, I, kh, kw).

    Returns:
        alpha_w and beta_w, both (O, 1, 1, 1).
    """
    beta = _channel_mean(weight)
    return _channel_mean((weight - beta) ** 2).sqrt(), beta


def binarize_weight(
    weight: Tensor, *, t: float = 0.1, k: float = 10.0, weight_set: WeightSet = "equalised"
) -> Tensor:
    """Replace every weight by one of two values of its output channel.

    Args:
        weight: (O, I, kh, kw), float; a constant filter gives NaN, as in the authors' code.
        t: sharpness of the estimator's tanh.
        k: its scale.
        weight_set: ``equalised`` is AdaBin's {mean - std, mean + std}; ``l1`` the usual
            {-mean|w|, +mean|w|} with a threshold of zero (XNOR-Net's), for comparison.

    Returns:
        (O, I, kh, kw).

    Source: authors' code; weight equalisation, section 3.1 of the paper.
    """
    weight = _at_least_float32(weight)
    if weight_set == "equalised":
        return _EqualiseAndBinarizeWeight.apply(weight, t, k)
    return _channel_mean(weight.abs()) * _SignWithErrorDecay.apply(weight, t, k)


def _channel_mean(x: Tensor) -> Tensor:
    return x.mean(dim=(1, 2, 3), keepdim=True)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class AdaptiveBinarySet(nn.Module):
    """The two activation values of one convolution, learned (shared by all its channels).

    Args:
        form: see ``binarize_activation``.
        adaptive: whether the values are trained; else they stay {-1, +1}.
    """

    def __init__(self, *, form: Form = "code", adaptive: bool = True) -> None:
        super().__init__()
        self.form: Form = form
        self.alpha_a = nn.Parameter(torch.tensor(1.0), requires_grad=adaptive)
        self.beta_a = nn.Parameter(torch.tensor(0.0), requires_grad=adaptive)

    def forward(self, x: Tensor) -> Tensor:
        return binarize_activation(x, self.alpha_a, self.beta_a, form=self.form)

    @property
    def centre(self) -> Tensor:
        """What stands between the two values: alpha * beta in the code's form, else beta."""
        return self.beta_a if self.form == "paper" else self.alpha_a * self.beta_a


class AdaBinConv2d(nn.Conv2d):
    """A convolution with two-valued weights and two-valued activations.

    A drop-in for ``nn.Conv2d``. Padding is added after binarisation: padded positions hold 0.

    Args:
        args, kwargs: those of ``nn.Conv2d`` (``bias`` defaults to False here).
        a_bit: 1, or any other number to leave the activations alone.
        w_bit: 1, or any other number to use the latent weights (step 1 of two-step training).
        form: see ``binarize_activation``.
        weight_set: see ``binarize_weight``.
        adaptive: whether the activation values are trained.

    Attributes:
        t, k: parameters of the weights' gradient; set by ``set_gradient_schedule``.

    Source: ``AdaBin_Conv2d`` of the authors' code. Where groups > 1 the statistics are those of
    the filter itself (the authors' divisor is right for groups = 1 only).
    """

    def __init__(
        self,
        *args: Any,
        a_bit: int = 1,
        w_bit: int = 1,
        form: Form = "code",
        weight_set: WeightSet = "equalised",
        adaptive: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **{"bias": False, **kwargs})
        self.a_bit, self.w_bit = a_bit, w_bit
        self.weight_set: WeightSet = weight_set
        self.t, self.k = 0.1, 10.0
        self.binary_a = AdaptiveBinarySet(form=form, adaptive=adaptive)

    def binary_weight(self) -> Tensor:
        """The weights the convolution uses, (O, I/groups, kh, kw)."""
        if self.w_bit != 1:
            return self.weight
        return binarize_weight(self.weight, t=self.t, k=self.k, weight_set=self.weight_set)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H', W')."""
        if self.a_bit == 1:
            x = self.binary_a(x)
        return F.conv2d(
            x,
            self.binary_weight(),
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )

    def pack(self) -> PackedBinaryConv2d:
        """The layer for inference in bits: XNOR and popcount, one bit a weight.

        Raises:
            ValueError: the layer is not binary on both sides, has groups, padding by name, the
                ablation's weights, a constant filter or ``alpha_a`` = 0.
        """
        if (self.a_bit, self.w_bit) != (1, 1):
            raise ValueError(
                f"a layer with a_bit={self.a_bit}, w_bit={self.w_bit} has nothing to pack: both "
                "must be 1 (a two-step training packs after its second step)"
            )
        if self.groups != 1 or isinstance(self.padding, str) or self.weight_set != "equalised":
            raise ValueError(
                f"cannot pack {self}: groups must be 1, padding a number, weight_set 'equalised'"
            )
        return PackedBinaryConv2d.from_conv(
            self.weight,
            alpha_a=self.binary_a.alpha_a,
            beta_a=self.binary_a.beta_a,
            form=self.binary_a.form,
            bias=self.bias,
            stride=(self.stride[0], self.stride[1]),
            padding=(self.padding[0], self.padding[1]),
            dilation=(self.dilation[0], self.dilation[1]),
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, a_bit={self.a_bit}, w_bit={self.w_bit}"


class Maxout(nn.Module):
    """Two learned slopes per channel: ``pos * relu(x) - neg * relu(-x)``.

    Args:
        channels: C of the (B, C, H, W) input.

    Source: ``Maxout`` of the authors' code (not the maximum over linear maps of that name).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.neg_scale = nn.Parameter(torch.full((channels,), 0.25))
        self.pos_scale = nn.Parameter(torch.full((channels,), 1.0))

    def forward(self, x: Tensor) -> Tensor:
        pos, neg = self.pos_scale[:, None, None], self.neg_scale[:, None, None]
        return pos * x.relu() - neg * (-x).relu()


def gradient_schedule(epoch: int, epochs: int) -> tuple[float, float]:
    """t and k of the weights' gradient at one epoch, in float32 as the authors compute them.

    ``t = 10^(-3 + 4 epoch / epochs)``, ``k = max(1/t, 1)``: the product is 1 until three quarters
    of the training, so the estimator starts as the identity and sharpens.

    Args:
        epoch: counted from 0.
        epochs: how many the training has.

    Source: authors' code (``--progressive``); IR-Net's estimator.
    """
    t = torch.tensor(10.0 ** (-3 + 4 * epoch / epochs))
    k = 1 / t if t < 1 else torch.tensor(1.0)
    return t.item(), k.item()


def set_gradient_schedule(model: nn.Module, epoch: int, epochs: int) -> tuple[float, float]:
    """Set t and k of ``gradient_schedule`` on every AdaBin convolution; returns them."""
    t, k = gradient_schedule(epoch, epochs)
    for module in model.modules():
        if isinstance(module, AdaBinConv2d):
            module.t, module.k = t, k
    return t, k
