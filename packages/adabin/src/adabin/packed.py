"""Inference in bits: a trained network with its binary convolutions packed and all else folded.

``pack(model)`` gives a network of the same outputs that stores one bit a binary weight and runs
XNOR and popcount. Batch norms are folded into the convolutions and the last linear layer; the
shortcut's sum and Maxout happen as a convolution stores its result.

In float64 packed and dense agree to rounding. In float32 an activation within rounding of its
threshold may fall on the other side and change what follows it.

Source: AdaBin's inference (section 3 of the paper); the authors' code only simulates bits.
"""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from adabin.cli import main as command_line

    raise SystemExit(command_line(["export", *sys.argv[1:]]))

import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adabin.config import ExportConfig
from adabin.layers import AdaBinConv2d, Maxout
from adabin.model import (
    BasicBlock,
    CifarResNet18,
    CifarResNet20,
    CifarVGGSmall,
    Config,
    ConvShortcutBlock,
    DownsampleBlock,
    ImageNetResNet,
    build,
    subsample_and_pad,
)
from adabin.pipeline import file_metadata, load_network
from papers_shared.checkpoints import load_state_dict, load_strict, save_state_dict
from papers_shared.kernels import PackedBinaryConv2d, batch_norm_affine

METADATA_KEY = "adabin_packed"


def pack_conv(conv: AdaBinConv2d) -> PackedBinaryConv2d:
    """One AdaBin convolution in bits.

    Raises:
        ValueError: a layer that is not binary on both sides, has groups, padding by name, the
            ablation's weights, a constant filter or ``alpha_a`` = 0.
    """
    if (conv.a_bit, conv.w_bit) != (1, 1):
        raise ValueError(
            f"a layer with a_bit={conv.a_bit}, w_bit={conv.w_bit} has nothing to pack: both "
            "must be 1 (a two-step training packs after its second step)"
        )
    if conv.groups != 1 or isinstance(conv.padding, str) or conv.weight_set != "equalised":
        raise ValueError(
            f"cannot pack {conv}: groups must be 1, padding a number, weight_set 'equalised'"
        )
    return PackedBinaryConv2d.from_conv(
        conv.weight,
        alpha_a=conv.binary_a.alpha_a,
        beta_a=conv.binary_a.beta_a,
        form=conv.binary_a.form,
        bias=conv.bias,
        stride=_pair(conv.stride),
        padding=_pair(conv.padding),
        dilation=_pair(conv.dilation),
    )


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]


def _slopes(maxout: nn.Module) -> Tensor:
    """(2, C): the positive and the negative slope.

    Raises:
        ValueError: another nonlinearity.
    """
    if not isinstance(maxout, Maxout):
        raise ValueError(f"only networks with Maxout can be packed, this one has {maxout}")
    return torch.stack([maxout.pos_scale, maxout.neg_scale]).detach().clone()


def _fused(conv: AdaBinConv2d, norm: nn.BatchNorm2d, maxout: nn.Module) -> PackedBinaryConv2d:
    return pack_conv(conv).fold_batch_norm(norm).fuse_slopes(*_slopes(maxout))


def _folded(conv: nn.Module, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A full-precision convolution with the batch norm that follows it folded in."""
    assert isinstance(conv, nn.Conv2d)
    assert not isinstance(conv.padding, str)
    scale, shift = batch_norm_affine(norm)
    folded = nn.Conv2d(
        conv.in_channels, conv.out_channels, _pair(conv.kernel_size),
        stride=_pair(conv.stride), padding=_pair(conv.padding), dtype=conv.weight.dtype,
        device=conv.weight.device,
    ).requires_grad_(False)  # fmt: skip
    folded.weight.copy_(conv.weight.double() * scale[:, None, None, None])
    assert folded.bias is not None
    folded.bias.copy_(shift)
    return folded.to(memory_format=torch.channels_last)


def _folded_linear(norm: nn.BatchNorm1d, linear: nn.Linear) -> nn.Linear:
    """A linear layer with the batch norm before it folded in."""
    scale, shift = batch_norm_affine(norm)
    folded = nn.Linear(
        linear.in_features, linear.out_features,
        dtype=linear.weight.dtype, device=linear.weight.device,
    ).requires_grad_(False)  # fmt: skip
    weight = linear.weight.detach().double()
    folded.weight.copy_(weight * scale)
    folded.bias.copy_(linear.bias.detach().double() + weight @ shift)
    return folded


class Slopes(nn.Module):
    """Maxout of inference: ``x`` times one of two slopes per channel."""

    slopes: Tensor

    def __init__(self, slopes: Tensor) -> None:
        super().__init__()
        self.register_buffer("slopes", slopes)

    def forward(self, x: Tensor) -> Tensor:
        positive, negative = self.slopes[:, :, None, None]
        return x * torch.where(x > 0, positive, negative)


class Stem(nn.Sequential):
    """Convolutions in full precision, each followed by Maxout; max pooling where asked for."""

    def __init__(self, *layers: nn.Module, pool: bool) -> None:
        super().__init__(*layers)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        *others, last = self
        assert isinstance(last, Slopes)
        for layer in others:
            x = layer(x)
        if not self.pool:
            return last(x)
        if (last.slopes >= 0).all():  # increasing, so the maximum may be taken first: 4x less work
            return last(F.max_pool2d(x, 3, stride=2, padding=1))
        return F.max_pool2d(last(x), 3, stride=2, padding=1)


class PackedBlock(nn.Module):
    """A residual block: each packed convolution adds its shortcut and applies Maxout itself."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.conv1 = _fused(block.conv1, block.bn1, block.nonlinear1)
        self.conv2 = _fused(block.conv2, block.bn2, block.nonlinear2)
        self.skip: Callable[[Tensor], Tensor] = nn.Identity()
        if block.changes_shape:
            self.skip = _packed_skip(block)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x, self.skip(x))
        return self.conv2(x, x)


class SubsampleAndPad(nn.Module):
    """See ``subsample_and_pad``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return subsample_and_pad(x, self.channels)


def _packed_skip(block: BasicBlock) -> nn.Module:
    if isinstance(block, ConvShortcutBlock):
        layers = block.shortcut
    elif isinstance(block, DownsampleBlock):
        layers = block.downsample
    else:
        return SubsampleAndPad(block.conv1.out_channels)
    *pool, conv, norm = layers
    assert isinstance(norm, nn.BatchNorm2d)
    return nn.Sequential(*pool, _folded(conv, norm))


class PooledUnit(nn.Module):
    """VGG-Small's odd layers: packed convolution, max pooling, batch norm, Maxout."""

    scale: Tensor
    shift: Tensor

    def __init__(self, conv: AdaBinConv2d, norm: nn.BatchNorm2d, maxout: nn.Module) -> None:
        super().__init__()
        self.conv = pack_conv(conv)
        scale, shift = batch_norm_affine(norm)
        self.register_buffer("scale", scale.to(conv.weight.dtype))
        self.register_buffer("shift", shift.to(conv.weight.dtype))
        self.maxout = Slopes(_slopes(maxout))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv(x), 2)
        return self.maxout(self.scale[:, None, None] * x + self.shift[:, None, None])


class PackedNetwork(nn.Module):
    """A network for inference in bits; made by ``pack`` or ``load_packed``.

    Attributes:
        config: the network it was made from.
        stem, body, head: full precision, packed, full precision.
    """

    def __init__(
        self, config: Config, *, stem: Stem, body: nn.Sequential, head: nn.Linear, average: bool
    ) -> None:
        super().__init__()
        self.stem, self.body, self.head = stem, body, head
        self.config, self.average = config, average
        self.eval()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W), normalised with ImageNet's mean and std -> logits (B, classes)."""
        x = self.body(self.stem(x.contiguous(memory_format=torch.channels_last)))
        return self.head((x.mean((2, 3)) if self.average else x).flatten(1))


def pack(model: nn.Module) -> PackedNetwork:
    """The same network for inference in bits, in the model's dtype.

    Args:
        model: what ``build`` or ``load_official`` gives; its batch norms' running statistics
            are used whatever its mode.

    Returns:
        A network of the same inputs and outputs, without gradients. It runs on CPUs (compiled on
        first use) and CUDA devices (Triton), else in plain torch.

    Raises:
        ValueError: not one of AdaBin's networks, or one with layers that are not binary.
    """
    config = _config_of(model)
    with torch.no_grad():
        if isinstance(model, CifarVGGSmall):
            stem, body, head = _pack_vgg(model)
        else:
            stem, body, head = _pack_resnet(model)
    average = not isinstance(model, CifarVGGSmall)
    return PackedNetwork(config, stem=stem, body=body, head=head, average=average)


def _pack_vgg(model: CifarVGGSmall) -> tuple[Stem, nn.Sequential, nn.Linear]:
    def unit(i: int) -> tuple[AdaBinConv2d, nn.BatchNorm2d, nn.Module]:
        parts = (model.get_submodule(f"{name}{i}") for name in ("conv", "bn", "nonlinear"))
        return tuple(parts)  # type: ignore[return-value]

    conv, norm, maxout = unit(0)
    stem = Stem(_folded(conv, norm), Slopes(_slopes(maxout)), pool=False)
    body = (
        PooledUnit(*unit(i)) if i % 2 else _fused(*unit(i)) for i in range(1, len(model.widths))
    )
    head = nn.Linear(model.fc.in_features, model.fc.out_features, dtype=model.fc.weight.dtype)
    head.load_state_dict(model.fc.state_dict())
    return stem, nn.Sequential(*body), head.to(model.fc.weight.device).requires_grad_(False)


def _pack_resnet(model: nn.Module) -> tuple[Stem, nn.Sequential, nn.Linear]:
    assert isinstance(model, CifarResNet20 | CifarResNet18 | ImageNetResNet)
    first = model.conv1 if isinstance(model.conv1, nn.Sequential) else [model.conv1]
    layers = [*first, model.bn1, model.nonlinear1]  # conv, norm, Maxout, again and again
    stem = []
    for conv, norm, maxout in zip(layers[::3], layers[1::3], layers[2::3], strict=True):
        assert isinstance(norm, nn.BatchNorm2d)
        stem += [_folded(conv, norm), Slopes(_slopes(maxout))]
    stages = [stage for name, stage in model.named_children() if name.startswith("layer")]
    body = [PackedBlock(block) for stage in stages for block in stage]  # type: ignore[attr-defined]
    linear = model.fc if isinstance(model, ImageNetResNet) else model.linear
    return (
        Stem(*stem, pool=isinstance(model, ImageNetResNet)),
        nn.Sequential(*body),
        _folded_linear(model.bn2, linear),
    )


def _config_of(model: nn.Module) -> Config:
    """The configuration that ``build`` needs for a network of this shape."""
    arches = {
        CifarResNet20: "cifar10_resnet20",
        CifarResNet18: "cifar10_resnet18",
        CifarVGGSmall: "cifar10_vgg_small",
        ImageNetResNet: "imagenet_resnet",
    }
    if type(model) not in arches:
        raise ValueError(f"{type(model).__name__} is not one of the networks that `build` makes")
    conv = next(m for m in model.modules() if isinstance(m, AdaBinConv2d))
    config: dict[str, object] = {"arch": arches[type(model)], "form": conv.binary_a.form}
    stages = [s for name, s in model.named_children() if name.startswith("layer")]
    depths = tuple(len(s) for s in stages)  # type: ignore[arg-type]
    if isinstance(model, ImageNetResNet):
        config |= {"layers": depths, "num_classes": model.fc.out_features}
        config["deep_stem"] = isinstance(model.conv1, nn.Sequential)
        skips = [m for m in model.modules() if isinstance(m, DownsampleBlock) and m.changes_shape]
        config["avg_down"] = all(len(m.downsample) == 3 for m in skips)
    elif isinstance(model, CifarVGGSmall):
        config["num_classes"] = model.fc.out_features
    else:
        assert isinstance(model, CifarResNet20 | CifarResNet18)
        config |= {"num_blocks": depths, "num_classes": model.linear.out_features}
    return Config.of(config)


def packed_weight_bytes(model: nn.Module) -> int:
    """Bytes that the bits of all packed convolutions take."""
    packed = (m for m in model.modules() if isinstance(m, PackedBinaryConv2d))
    return sum(m.weight_bits.numel() for m in packed)


def save_packed(model: PackedNetwork, path: Path | str) -> None:
    """Write a packed network as one safetensors file that says which network it is.

    Raises:
        OSError: the folder is not writable.
    """
    metadata = {METADATA_KEY: json.dumps(model.config.to_dict())}
    save_state_dict(model.state_dict(), path, metadata=metadata)


def load_packed(path: Path | str) -> PackedNetwork:
    """A packed network from the file that ``save_packed`` wrote, in the file's dtype.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a packed network, or damaged.
    """
    state = load_state_dict(path)
    metadata = file_metadata(path)
    if METADATA_KEY not in metadata:
        raise ValueError(f"{path} is no packed network: `adabin export` writes one")
    config = Config.of(json.loads(metadata[METADATA_KEY]))
    with torch.random.fork_rng(devices=[]):  # fresh weights, all overwritten
        model = pack(build(config).to(state["head.weight"].dtype))
    load_strict(model, state, what=str(path))
    return model


def main(config: ExportConfig) -> int:
    """Pack a checkpoint and say what it comes to."""
    if config.output.suffix != ".safetensors":
        raise ValueError(f"{config.output}: the file's name must end in .safetensors")
    model, _ = load_network(config.checkpoint, variant=config.variant)
    packed = model if isinstance(model, PackedNetwork) else pack(model)
    save_packed(packed, config.output)
    print(
        f"{config.output}: {config.output.stat().st_size:,} bytes, "
        f"{packed_weight_bytes(packed):,} of them binary weights"
    )
    return 0
