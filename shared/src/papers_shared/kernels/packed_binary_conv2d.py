"""A layer that holds packed bits and calls :func:`~papers_shared.kernels.binary_conv2d`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from papers_shared.kernels.binary_conv2d import Convolution, convolution, prepare
from papers_shared.kernels.packed_binary_weight import PackedBinaryWeight, pack_weight

Form = Literal["code", "paper"]
_SIZES_KEPT = 8


class PackedBinaryConv2d(nn.Module):
    """Binary convolution for inference: one bit a weight, three reals an output channel.

    Built empty for ``load_state_dict``; :meth:`from_conv` packs a trained layer. A batch norm, a
    residual and a two-slope activation can be fused behind it. Constants are kept for the latest
    input sizes (:meth:`clear_constants` after changing a buffer in place).

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation: as in ``nn.Conv2d``.
        bias: hold a bias (a folded batch norm needs one).
        slopes: hold the two slopes of a fused Maxout.
        dtype: of the reals; the bits are uint8.

    State (all buffers): ``weight_bits`` (O, ceil(KH * KW * C / 8)) in the layout of
    :class:`PackedBinaryWeight`, ``weight_scale`` (O,), ``weight_center`` (O,), ``activation`` (3,)
    = threshold, scale, center, and where asked for ``bias`` (O,), ``slopes`` (2, O) = positive,
    negative.

    Source: AdaBin, inference with XNOR and popcount.
    """

    weight_bits: Tensor
    weight_scale: Tensor
    weight_center: Tensor
    activation: Tensor
    bias: Tensor | None
    slopes: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = False,
        slopes: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, size
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.backend = "auto"
        fan_in = in_channels * size[0] * size[1]
        bits = torch.zeros(out_channels, (fan_in + 7) // 8, dtype=torch.uint8)
        self.register_buffer("weight_bits", bits)
        self.register_buffer("weight_scale", torch.ones(out_channels, dtype=dtype))
        self.register_buffer("weight_center", torch.zeros(out_channels, dtype=dtype))
        self.register_buffer("activation", torch.tensor([0.0, 1.0, 0.0], dtype=dtype))
        self.register_buffer("bias", torch.zeros(out_channels, dtype=dtype) if bias else None)
        self.register_buffer("slopes", torch.ones(2, out_channels, dtype=dtype) if slopes else None)
        self._constants: dict[Any, Convolution] = {}

    @classmethod
    def from_conv(
        cls,
        weight: Tensor,
        *,
        alpha_a: float | Tensor,
        beta_a: float | Tensor,
        form: Form = "code",
        bias: Tensor | None = None,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
    ) -> PackedBinaryConv2d:
        """Pack a trained binary convolution.

        Args:
            weight: (O, C, KH, KW) latent weights, groups 1.
            alpha_a, beta_a: the activation's scale and shift; ``q = sign((x - beta_a) / alpha_a)``.
            form: the binary set: ``code`` alpha_a * (q + beta_a), ``paper`` alpha_a * q + beta_a.
            bias: (O,) or None.
            stride, padding, dilation: as in ``nn.Conv2d``, numbers.

        Raises:
            ValueError: a constant filter, ``alpha_a`` = 0, an unknown form.

        Source: AdaBin, adaptive binary sets; its released code uses the first form.
        """
        if form not in ("code", "paper"):
            raise ValueError(f"form={form!r}: expected 'code' or 'paper'")
        alpha, beta = float(alpha_a), float(beta_a)
        if alpha == 0:
            raise ValueError("alpha_a is 0: the activation's two values must differ")
        packed = pack_weight(weight)
        layer = cls(
            weight.shape[1],
            weight.shape[0],
            (weight.shape[2], weight.shape[3]),
            stride=stride,
            padding=padding,
            dilation=dilation,
            bias=bias is not None,
            dtype=weight.dtype,
        ).to(weight.device)
        layer.weight_bits = packed.bits
        layer.weight_scale = packed.scale
        layer.weight_center = packed.center
        center = alpha * beta if form == "code" else beta
        layer.activation = layer.activation.new_tensor([beta, alpha, center])
        if bias is not None:
            layer.bias = bias.detach().clone()
        return layer

    @property
    def weight(self) -> PackedBinaryWeight:
        return PackedBinaryWeight(
            self.weight_bits,
            self.weight_scale,
            self.weight_center,
            self.in_channels,
            self.kernel_size,
        )

    def fold_batch_norm(self, norm: nn.BatchNorm2d) -> PackedBinaryConv2d:
        """Take a batch norm that follows (in eval mode) into the weight's values and the bias.

        Raises:
            ValueError: another number of channels, or no running statistics.
        """
        if norm.num_features != self.out_channels:
            raise ValueError(
                f"batch norm of {norm.num_features} channels: the layer has {self.out_channels}"
            )
        scale, shift = batch_norm_affine(norm)
        dtype = self.weight_scale.dtype
        bias = torch.zeros_like(shift) if self.bias is None else self.bias.double()
        self.bias = (shift + scale * bias).to(dtype)
        self.weight_scale = (scale * self.weight_scale.double()).to(dtype)
        self.weight_center = (scale * self.weight_center.double()).to(dtype)
        self.clear_constants()
        return self

    def fuse_slopes(self, positive: Tensor, negative: Tensor) -> PackedBinaryConv2d:
        """Apply ``positive * relu(y) - negative * relu(-y)`` (per channel) to the result."""
        self.slopes = torch.stack([positive, negative]).detach().to(self.weight_scale.dtype)
        self.clear_constants()
        return self

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve.

        Args:
            x: (B, C, H, W) float32 or float64.
            residual: (B, O, OH, OW), added before the slopes.

        Returns:
            (B, O, OH, OW) in ``x``'s dtype and memory format.
        """
        key = (x.shape[1:], x.dtype, x.device, self.backend)
        run = self._constants.get(key)
        if run is None:
            if len(self._constants) == _SIZES_KEPT:
                del self._constants[next(iter(self._constants))]  # the oldest
            run = self._constants[key] = self._prepare(x)
        return run(x, residual)

    def _prepare(self, x: Tensor) -> Convolution:
        threshold, scale, center = self.activation.tolist()
        operands = prepare(
            self.weight,
            x,
            threshold=threshold,
            activation_scale=scale,
            activation_center=center,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            bias=self.bias,
            slopes=None if self.slopes is None else (self.slopes[0], self.slopes[1]),
        )
        return convolution(operands, device=x.device, backend=self.backend)

    def clear_constants(self) -> None:
        """Forget the constants of the input sizes met: they are worked out anew."""
        self._constants.clear()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedBinaryConv2d:
        self.clear_constants()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.clear_constants()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_constants": {}}  # copies and pickles carry the buffers alone

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"bias={self.bias is not None}, slopes={self.slopes is not None}"
        )


def batch_norm_affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Per-channel scale and shift of a batch norm in eval mode, float64.

    Raises:
        ValueError: a batch norm without running statistics.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without running statistics cannot be folded")
    scale = 1 / torch.sqrt(norm.running_var.detach().double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.detach().double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale, shift
