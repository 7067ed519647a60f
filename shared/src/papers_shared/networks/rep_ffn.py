"""Feed-forward nets of 1x1 and depthwise convolutions that merge after training (U-DiT, IPT-V2).

Parameters have the names, shapes and order of the authors' code.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers_shared.kernels.depthwise_conv2d import depthwise_conv2d

M = TypeVar("M", bound=nn.Module)
REPS = (0, 1, 3)


class RepLeFFN(nn.Module):
    """``project_out(u)`` with ``a = GELU(project_in(x))`` and u a depthwise mixture of a.

    ======  ===========================  ==============================
    rep     project_in, project_out      u
    ======  ===========================  ==============================
    0       one 1x1 convolution          DW5(a)
    1       two, nothing in between      a + DW5(a) + DW3(a) + DW1(a)
    3       one                          a + DW5(a) + DW3(a) + DW1(a)
    ======  ===========================  ==============================

    All three are linear maps around one GELU, so each merges into rep 0 (:meth:`merged`).

    Args:
        dim: channels C of input and output.
        ffn_expansion_factor: hidden channels E = int(C * factor); the pairs have E // 2 between.
        bias: of all convolutions.
        rep: see above.
        identity: add a to u; the default is what the authors' code does, as in the table.

    Attributes:
        merge_in_training: compute with the merged weights, worked out anew from the branches at
            each call: the same function and gradients (to rounding) at the merged net's cost.

    Source: ipt_v2 sheet 3.3 (the paper's Rep-LeFFN is taken to be rep 1), u_dit sheet 3.5, 3.6.
    """

    def __init__(
        self,
        dim: int,
        ffn_expansion_factor: float,
        *,
        bias: bool = True,
        rep: int = 1,
        identity: bool | None = None,
    ) -> None:
        super().__init__()
        if rep not in REPS:
            raise ValueError(f"rep={rep}: expected one of {REPS}")
        hidden = int(dim * ffn_expansion_factor)
        self.rep, self.identity = rep, rep != 0 if identity is None else identity
        self.merge_in_training = False

        def pointwise(inputs: int, outputs: int) -> nn.Module:
            if rep != 1:
                return nn.Conv2d(inputs, outputs, 1, bias=bias)
            return nn.Sequential(
                nn.Conv2d(inputs, hidden // 2, 1, bias=bias),
                nn.Conv2d(hidden // 2, outputs, 1, bias=bias),
            )

        def depthwise(side: int) -> nn.Conv2d:
            return nn.Conv2d(hidden, hidden, side, padding=side // 2, groups=hidden, bias=bias)

        self.project_in = pointwise(dim, hidden)
        self.dwconv: nn.Module = (
            depthwise(5) if rep == 0 else nn.ModuleList([depthwise(5), depthwise(3), depthwise(1)])
        )
        self.project_out = pointwise(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if self.merge_in_training and self.rep != 0:
            (weight_in, bias_in), (weight, bias), (weight_out, bias_out) = self._merged_weights()
            a = F.gelu(F.conv2d(x, weight_in, bias_in))
            return F.conv2d(depthwise_conv2d(a, weight, bias), weight_out, bias_out)
        a = F.gelu(self.project_in(x))
        convolutions = _layers(self.dwconv)
        u = depthwise_conv2d(a, convolutions[0].weight, convolutions[0].bias)
        for convolution in convolutions[1:]:
            u = u + depthwise_conv2d(a, convolution.weight, convolution.bias)
        return self.project_out(u + a if self.identity else u)

    def _merged_weights(self) -> tuple[tuple[Tensor, Tensor | None], ...]:
        """Weight and bias of the three layers of the merged net, differentiable."""
        weight, bias = _merged_depthwise(_layers(self.dwconv))
        if self.identity:
            centre = weight.new_zeros(5, 5)
            centre[2, 2] = 1
            weight = weight + centre
        outer = (_merged_pair(_layers(part)) for part in (self.project_in, self.project_out))
        first, last = outer
        return first, (weight, bias), last

    @torch.no_grad()
    def merged(self) -> RepLeFFN:
        """The same function as a new module of rep 0 without identity; this one stays as it is.

        W = W2 W1 and b = W2 b1 + b2 for the pairs; the depthwise kernels add up in the middle of
        the 5x5 one, the identity as a 1 in its centre.
        """
        (weight_in, bias_in), (weight, bias), (weight_out, bias_out) = self._merged_weights()
        hidden, dim = weight_in.shape[:2]
        with torch.device("meta"):
            one = RepLeFFN(dim, (hidden + 0.5) / dim, bias=bias is not None, rep=0)
        parts = {
            "project_in": (weight_in, bias_in),
            "dwconv": (weight, bias),
            "project_out": (weight_out, bias_out),
        }
        state = {
            f"{name}.{kind}": value.clone()
            for name, pair in parts.items()
            for kind, value in zip(("weight", "bias"), pair, strict=True)
            if value is not None
        }
        one.load_state_dict(state, assign=True)
        return one.train(self.training)


class Mlp(nn.Module):
    """``fc2(GELU_tanh(fc1(x)))`` of 1x1 convolutions; with ``kernel_size`` K a step before fc2:
    a + GELU(DW_K(a)), whose GELU is exact.

    Source: ipt_v2 sheet 3.4, ``ffn_type`` 'basic' and 'dwconvK'.
    """

    def __init__(self, dim: int, mlp_ratio: float, *, kernel_size: int | None = None) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        if kernel_size is not None:
            self.dwconv = _DepthwiseGelu(hidden, kernel_size)
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        self.kernel_size = kernel_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        a = F.gelu(self.fc1(x), approximate="tanh")
        if self.kernel_size is not None:
            a = a + self.dwconv(a)
        return self.fc2(a)


class _DepthwiseGelu(nn.Module):
    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        convolution = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.depthwise_conv = nn.Sequential(convolution, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.depthwise_conv(x)


def merge_ffns(network: M) -> M:
    """A copy of a network with every ``RepLeFFN`` merged; the network itself is left as it is.

    The copy computes the same (to rounding) with fewer parameters and operations.

    Args:
        network: any module, or one ``RepLeFFN``.
    """
    if isinstance(network, RepLeFFN):
        return network.merged()  # type: ignore[return-value]
    made = copy.deepcopy(network)
    for name, module in list(made.named_modules()):
        if isinstance(module, RepLeFFN):
            parent, _, last = name.rpartition(".")
            setattr(made.get_submodule(parent), last, module.merged())
    return made


def _layers(module: nn.Module) -> list[nn.Conv2d]:
    """The convolutions of a part that may be one or several."""
    return [module] if isinstance(module, nn.Conv2d) else list(module)  # type: ignore[call-overload]


def _merged_pair(layers: list[nn.Conv2d]) -> tuple[Tensor, Tensor | None]:
    weight, bias = layers[0].weight, layers[0].bias
    for layer in layers[1:]:
        outer = layer.weight.flatten(1)
        weight = (outer @ weight.flatten(1))[:, :, None, None]
        bias = None if bias is None or layer.bias is None else outer @ bias + layer.bias
    return weight, bias


def _merged_depthwise(layers: list[nn.Conv2d]) -> tuple[Tensor, Tensor | None]:
    around = [(5 - layer.kernel_size[0]) // 2 for layer in layers]
    kernels = [F.pad(layer.weight, [a] * 4) for layer, a in zip(layers, around, strict=True)]
    biases = [layer.bias for layer in layers if layer.bias is not None]
    bias = torch.stack(biases).sum(0) if biases else None
    return torch.stack(kernels).sum(0), bias


def merge_in_training(network: nn.Module, on: bool = True) -> None:
    """Let every ``RepLeFFN`` of a network compute with merged weights, see there."""
    for module in network.modules():
        if isinstance(module, RepLeFFN):
            module.merge_in_training = on
