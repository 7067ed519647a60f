"""HRM's convolutions: a sum of branches in training, one 3x3 convolution afterwards.

What is merged is a state dict's entries, so that a network and a file are merged by the same lines.

Source: paper, "high-frequency reparameterization module"; lipt sheet 3.5 and 3.6.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import OrderedDict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5  # of every batch norm
State = Mapping[str, Tensor]


class BNAndPad(nn.Module):
    """Batch norm, then a border of one pixel of what batch norm makes of zero.

    The border's value comes from the running statistics, in training too (after this very pass has
    updated them), and passes no gradient: in eval mode the convolution that follows then equals one
    that pads before the batch norm, which makes the branch mergeable exactly.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H + 2, W + 2)."""
        y = self.bn(x)
        _, shift = _affine(dict(self.bn.named_parameters()) | dict(self.bn.named_buffers()))
        batch, _, height, width = y.shape
        edge = shift.to(y.dtype).view(1, -1, 1, 1).expand(batch, -1, height + 2, width + 2)
        layout = torch.channels_last if _is_channels_last(y) else torch.contiguous_format
        padded = edge.clone(memory_format=layout)
        padded[:, :, 1:-1, 1:-1] = y
        return padded


class IdentityConv1x1(nn.Module):
    """A 1x1 convolution whose kernel is the identity plus a weight that starts at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return F.conv2d(x, self.weight + _identity(self.weight))


class SobelBranch(nn.Module):
    """A 1x1 convolution, then per channel a scaled isotropic Sobel filter, plus a bias.

    ``b0``, the 1x1 convolution's bias, has no effect: the filter sums to zero. Its gradient is
    zero up to rounding.
    """

    def __init__(self, inputs: int, outputs: int, *, vertical: bool) -> None:
        super().__init__()
        conv = nn.Conv2d(inputs, outputs, 1)
        assert conv.bias is not None
        self.k0, self.b0 = nn.Parameter(conv.weight.detach()), nn.Parameter(conv.bias.detach())
        self.scale = nn.Parameter(1e-3 * torch.randn(outputs, 1, 1, 1))
        self.bias = nn.Parameter(1e-3 * torch.randn(outputs))
        s = math.sqrt(2)
        mask = torch.tensor([[1.0, 0.0, -1.0], [s, 0.0, -s], [1.0, 0.0, -1.0]])
        mask = mask.T if vertical else mask
        # A parameter, since the authors' optimizer states count it.
        self.mask = nn.Parameter(mask.expand(outputs, 1, 3, 3).clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        y = F.conv2d(x, self.k0, self.b0, padding=1)  # of zeros it makes b0, the wanted border
        return F.conv2d(y, self.scale * self.mask, self.bias, groups=len(self.bias))


class DiverseBranchBlock(nn.Module):
    """The sum of a 3x3, a 1x1 - average, a 1x1, a 1x1 - 3x3 and two Sobel branches.

    Args:
        in_channels, out_channels: of the 3x3 convolution that it stands for (stride 1, padding 1).
        sobel: with the two Sobel branches; without, it is the block of "Diverse branch block".
    """

    def __init__(self, in_channels: int, out_channels: int, *, sobel: bool = True) -> None:
        super().__init__()
        i, o = in_channels, out_channels
        self.dbb_origin = _branch(conv=_conv(i, o, 3, padding=1), bn=_bn(o))
        self.dbb_avg = _branch(
            conv=_conv(i, o, 1), bn=BNAndPad(o), avg=nn.AvgPool2d(3, 1), avgbn=_bn(o)
        )
        self.dbb_1x1 = _branch(conv=_conv(i, o, 1), bn=_bn(o))
        self.dbb_1x1_kxk = _branch(
            idconv1=IdentityConv1x1(i), bn1=BNAndPad(i), conv2=_conv(i, o, 3), bn2=_bn(o)
        )
        self.sobel = sobel
        if sobel:
            self.dbb_sobelx = SobelBranch(i, o, vertical=False)
            self.dbb_sobely = SobelBranch(i, o, vertical=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        y = self.dbb_origin(x)
        y = y + self.dbb_1x1(x)
        y = y + self.dbb_avg(x)
        y = y + self.dbb_1x1_kxk(x)
        if self.sobel:
            y = y + self.dbb_sobelx(x)
            y = y + self.dbb_sobely(x)
        return y


class ConvBN(nn.Sequential):
    """A 1x1 convolution with bias and a batch norm: ``project_inp`` while it is trained."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 1), _bn(outputs))


def _branch(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def _conv(inputs: int, outputs: int, size: int, padding: int = 0) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=padding, bias=False)


def _bn(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPS)


def _identity(weight: Tensor) -> Tensor:
    return torch.eye(len(weight), dtype=weight.dtype, device=weight.device)[:, :, None, None]


def _is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


# ---- merging


def part(state: State, prefix: str) -> dict[str, Tensor]:
    """The entries below ``prefix``, by their names there."""
    below = f"{prefix}."
    return {n.removeprefix(below): value for n, value in state.items() if n.startswith(below)}


def _affine(bn: State) -> tuple[Tensor, Tensor]:
    """A batch norm in eval mode is ``scale * x + shift``; both (C,), detached."""
    scale = bn["weight"].detach() / (bn["running_var"] + EPS).sqrt()
    return scale, bn["bias"].detach() - bn["running_mean"] * scale


def _fused(weight: Tensor, bn: State) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a convolution without bias and its batch norm."""
    scale, shift = _affine(bn)
    return weight * scale[:, None, None, None], shift


def _after(first: tuple[Tensor, Tensor], kernel: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A 1x1 convolution and the 3x3 one after it, whose border is the first one's bias."""
    k1, b1 = first
    return torch.einsum("omhw,mi->oihw", kernel, k1[:, :, 0, 0]), bias + kernel.sum((2, 3)) @ b1


def merge_branches(state: State) -> tuple[Tensor, Tensor]:
    """The 3x3 convolution that equals a ``DiverseBranchBlock`` in eval mode.

    Args:
        state: the block's own entries. Sobel branches may be absent.

    Returns:
        kernel (o, i, 3, 3) and bias (o,), in the weights' dtype; worked out in float64.

    Source: lipt sheet 3.6.
    """
    dtype = state["dbb_origin.conv.weight"].dtype
    state = {n: v.detach().double() for n, v in state.items() if v.is_floating_point()}
    kernels = [_fused(state["dbb_origin.conv.weight"], part(state, "dbb_origin.bn"))]
    kernel, bias = _fused(state["dbb_1x1.conv.weight"], part(state, "dbb_1x1.bn"))
    kernels.append((F.pad(kernel, (1, 1, 1, 1)), bias))

    first = _fused(state["dbb_avg.conv.weight"], part(state, "dbb_avg.bn.bn"))
    mean = _identity(first[0]).expand(-1, -1, 3, 3) / 9
    kernels.append(_after(first, *_fused(mean, part(state, "dbb_avg.avgbn"))))

    weight = state["dbb_1x1_kxk.idconv1.weight"]
    first = _fused(weight + _identity(weight), part(state, "dbb_1x1_kxk.bn1.bn"))
    second = _fused(state["dbb_1x1_kxk.conv2.weight"], part(state, "dbb_1x1_kxk.bn2"))
    kernels.append(_after(first, *second))

    for name in ("dbb_sobelx", "dbb_sobely"):
        if sobel := part(state, name):
            # b0 does not appear: the mask sums to zero.
            kernels.append((sobel["scale"] * sobel["mask"] * sobel["k0"], sobel["bias"]))
    total = sum(k for k, _ in kernels), sum(b for _, b in kernels)
    kernel, bias = (torch.as_tensor(t).to(dtype) for t in total)
    return kernel, bias


def fold_batch_norm(state: State) -> tuple[Tensor, Tensor]:
    """The 1x1 convolution that equals a ``ConvBN`` in eval mode.

    Args:
        state: the entries ``0.weight``, ``0.bias`` and those of the batch norm under ``1``.

    Returns:
        weight (o, i, 1, 1) and bias (o,), in the weight's dtype; worked out in float64.
    """
    dtype = state["0.weight"].dtype
    state = {n: v.detach().double() for n, v in state.items() if v.is_floating_point()}
    scale, shift = _affine(part(state, "1"))
    weight, bias = state["0.weight"] * scale[:, None, None, None], state["0.bias"] * scale + shift
    return weight.to(dtype), bias.to(dtype)


def merge(network: nn.Module) -> nn.Module:
    """A merged copy: one convolution for each sum of branches, no batch norms; in eval mode.

    The copy gives the outputs that ``network`` gives in eval mode, up to rounding (about 1e-6 of
    the largest). A merged network comes back as a copy of itself.

    Args:
        network: a ``LIPT`` or any module that holds ``DiverseBranchBlock`` and ``ConvBN``.
    """
    merged = copy.deepcopy(network)
    for name, module in list(merged.named_modules()):
        if isinstance(module, DiverseBranchBlock):
            kernel, bias = merge_branches(module.state_dict())
        elif isinstance(module, ConvBN):
            kernel, bias = fold_batch_norm(module.state_dict())
        else:
            continue
        outputs, inputs, size, _ = kernel.shape
        conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, device=kernel.device)
        conv = conv.to(kernel.dtype)
        conv.load_state_dict({"weight": kernel, "bias": bias})
        merged.set_submodule(name, conv)
    if dataclasses.is_dataclass(config := getattr(merged, "config", None)):
        merged.config = dataclasses.replace(config, deploy=True)  # type: ignore[type-var, assignment]
    return merged.eval()
