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

import copy
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from adabin.config import ExportConfig
from adabin.layers import AdaBinConv2d
from adabin.mobilenet import ImageNetMobileNet
from adabin.model import (
    ARCHITECTURES,
    CifarResNet18,
    CifarResNet20,
    CifarVGGSmall,
    Config,
    ImageNetResNet,
    build,
)
from adabin.packed_layers import (
    PackedBlock,
    PackedMobileBlock,
    PooledUnit,
    Slopes,
    Stem,
    folded_conv,
    folded_linear,
    fused_conv,
    maxout_slopes,
)
from adabin.pipeline import load_network
from papers_shared.checkpoints import file_metadata, load_state_dict, load_strict, save_state_dict
from papers_shared.kernels import PackedBinaryConv2d

METADATA_KEY = "adabin_packed"


class PackedNetwork(nn.Module):
    """A network for inference in bits; made by ``pack`` or ``load_packed``.

    Attributes:
        config: the network it was made from.
        stem, body, head: full precision, packed, full precision.
        average: whether the head sees the mean over all positions.
    """

    def __init__(
        self,
        config: Config,
        *,
        stem: nn.Module,
        body: nn.Sequential,
        head: nn.Linear,
        average: bool,
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
    if not isinstance(model, tuple(ARCHITECTURES.values())):
        raise ValueError(f"{type(model).__name__} is not one of the networks that `build` makes")
    assert isinstance(model.config, Config)
    with torch.no_grad():
        stem: nn.Module
        if isinstance(model, CifarVGGSmall):
            stem, body, head = _pack_vgg(model)
        elif isinstance(model, ImageNetMobileNet):
            stem, body, head = _pack_mobilenet(model)
        else:
            stem, body, head = _pack_resnet(model)
    average = not isinstance(model, CifarVGGSmall)
    return PackedNetwork(model.config, stem=stem, body=body, head=head, average=average)


def _pack_vgg(model: CifarVGGSmall) -> tuple[Stem, nn.Sequential, nn.Linear]:
    def unit(i: int) -> tuple[AdaBinConv2d, nn.BatchNorm2d, nn.Module]:
        parts = (model.get_submodule(f"{name}{i}") for name in ("conv", "bn", "nonlinear"))
        return tuple(parts)  # type: ignore[return-value]

    conv, norm, maxout = unit(0)
    stem = Stem(folded_conv(conv, norm), Slopes(maxout_slopes(maxout)), pool=False)
    body = (
        PooledUnit(*unit(i)) if i % 2 else fused_conv(*unit(i)) for i in range(1, len(model.widths))
    )
    return stem, nn.Sequential(*body), copy.deepcopy(model.fc).requires_grad_(False)


def _pack_mobilenet(model: ImageNetMobileNet) -> tuple[nn.Module, nn.Sequential, nn.Linear]:
    body = nn.Sequential(*(PackedMobileBlock(block) for block in model.blocks))  # type: ignore[arg-type]
    stem = folded_conv(model.conv1, model.bn1)
    return stem, body, copy.deepcopy(model.fc).requires_grad_(False)


def _pack_resnet(model: nn.Module) -> tuple[Stem, nn.Sequential, nn.Linear]:
    assert isinstance(model, CifarResNet20 | CifarResNet18 | ImageNetResNet)
    first = model.conv1 if isinstance(model.conv1, nn.Sequential) else [model.conv1]
    layers = [*first, model.bn1, model.nonlinear1]  # conv, norm, Maxout, again and again
    stem = []
    for conv, norm, maxout in zip(layers[::3], layers[1::3], layers[2::3], strict=True):
        assert isinstance(norm, nn.BatchNorm2d)
        stem += [folded_conv(conv, norm), Slopes(maxout_slopes(maxout))]
    stages = [stage for name, stage in model.named_children() if name.startswith("layer")]
    body = [PackedBlock(block) for stage in stages for block in stage]  # type: ignore[attr-defined]
    linear = model.fc if isinstance(model, ImageNetResNet) else model.linear
    return (
        Stem(*stem, pool=isinstance(model, ImageNetResNet)),
        nn.Sequential(*body),
        folded_linear(model.bn2, linear),
    )


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
