"""Reads recordings of the detectors' code (see papers_shared.parity).

By content: ``kind`` says what a case is, ``class`` and ``config`` build it, ``state`` lists the
names and shapes it must have, and every key of its outputs is compared.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from genimage.degradations import gaussian_blur, jpeg
from genimage.model import Config, build
from genimage.official import load_official, swin_names
from genimage.pictures import from_tensor
from genimage.spectrum import BANDS, log_spectrum
from papers_shared.parity import (
    Case,
    Part,
    Run,
    fingerprint,
    fingerprint_error,
    name_seeded_state_dict,
    named_cases,
    seeded_input,
    values_error,
)

DESCRIPTIONS = {
    *("paper", "weights", "dtype", "input_scale", "tolerance", "state_crc32"),
    *("flops_note", "outputs_note"),
}


def checks(recording: Case) -> Iterator[tuple[str, Run]]:
    """Every case of a recording, to be run; sections it does not know fail."""
    kinds: dict[str, Callable[[Case], Iterable[Part]]] = {
        "network": _network,
        "spec": _spec,
        "augment": _augment,
    }
    yield from named_cases(
        recording,
        kinds,
        full_size=lambda _, case: _full_size(case),
        descriptions=DESCRIPTIONS,
    )


def state_crc32(state: Mapping[str, Tensor]) -> int:
    """Of the lines ``name (shape)`` in the order of the state dict."""
    lines = (f"{name} {tuple(value.shape)}" for name, value in state.items())
    return zlib.crc32("\n".join(lines).encode())


def _config(case: Case) -> Config:
    return Config.of({"class": case["class"], **case["config"]})


def _seeded(case: Case) -> tuple[nn.Module, list[Part]]:
    """The case's network with name-seeded weights; how far its names and shapes are off."""
    config = _config(case)
    own = build(config).state_dict()
    keep = set(case.get("keep", ()))
    if config.class_name == "SwinTransformer":
        # The recorded names are the authors', with buffers that a loader drops.
        recorded = {name: torch.zeros(shape) for name, shape in case["state"]}
    else:
        recorded = own
    parts: list[Part] = [
        ("state_crc32", float(state_crc32(recorded) != case["state_crc32"]), 0),
        ("state_entries", abs(len(recorded) - case["state_entries"]), 0),
    ]
    seeded = name_seeded_state_dict(recorded, keep)
    if config.class_name == "SwinTransformer":
        seeded = {name: value for name, value in seeded.items() if name not in keep}
        parts.append(("names", float(set(swin_names(seeded)) != set(own)), 0))
    return load_official(seeded, config), parts


def _error(value: Any, recorded: Any) -> float:
    if isinstance(recorded, Mapping):
        return fingerprint_error(value, recorded)
    return values_error(value, recorded)


def _network(case: Case) -> Iterator[Part]:
    network, parts = _seeded(case)
    yield from parts
    tolerance = case["tolerance"]
    if "ft_num" in case:
        numbers = [getattr(module, "ft_num", None) for module in network.modules()]
        ours = [n.item() for n in numbers if n is not None]
        yield "ft_num", values_error(ours, case["ft_num"]), 0
    state = network.state_dict()
    for name, value in case.get("fixed", {}).items():
        yield name, fingerprint_error(state[name], value), tolerance

    outputs: dict[str, Tensor] = {}

    def keep_output(name: str, value: Any) -> None:
        outputs[name] = value[0] if isinstance(value, tuple) else value

    for name in case["outputs"]:
        if name not in ("y", "features"):
            network.get_submodule(name).register_forward_hook(
                lambda _m, _i, out, name=name: keep_output(name, out)
            )
    linears = [m for m in network.modules() if isinstance(m, nn.Linear)]
    linears[-1].register_forward_pre_hook(lambda _m, args: keep_output("features", args[0]))
    scale = case["input_scale"]
    inputs = [
        scale["multiply"] * seeded_input(name, tuple(shape)) + scale["add"]
        for name, shape in case["inputs"].items()
    ]
    with torch.no_grad():
        out = network(*inputs)
    if isinstance(out, tuple):
        outputs["features"], out = out
    for name, value in case["outputs"].items():
        yield name, _error(out if name == "y" else outputs[name], value), tolerance


def _picture(recipe: Case) -> Tensor:
    """uint8 (3, H, W) of a picture that a recording defines."""
    if recipe["layout"] != "HWC" or recipe["then"] != "round, clip to 0..255, uint8":
        raise ValueError(f"no reader for pictures {recipe['layout']}, {recipe['then']!r}")
    values = seeded_input(recipe["name"], tuple(recipe["shape"]))
    levels = (recipe["multiply"] * values + recipe["add"]).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(2, 0, 1).contiguous()


def _spec(case: Case) -> Iterator[Part]:
    network, parts = _seeded(case)
    yield from parts
    crop = _picture(case["image_recipe"])[:, 16:240, 16:240]
    for key, recorded in case["features"].items():
        spectrum = log_spectrum(crop, band=BANDS[int(key)])
        yield f"features {key}", fingerprint_error(spectrum, recorded), case["tolerance"]
        with torch.no_grad():
            logits = network(spectrum[None])
        yield f"logits {key}", values_error(logits, case["logits"][key]), case["tolerance"]


def _augment(case: Case) -> Iterator[Part]:
    picture = _picture(case["image_recipe"])
    array = picture.permute(1, 2, 0).numpy()
    for sigma, recorded in case["blur"].items():
        ours = gaussian_blur(array, float(sigma))
        yield from _levels(f"blur {sigma}", ours, recorded, case["tolerance"], "")
    for quality, recorded in case["jpeg"].items():
        ours = np.asarray(jpeg(from_tensor(picture), int(quality)))
        yield from _levels(f"jpeg {quality}", ours, recorded, case["tolerance"], "jpeg_")


def _levels(
    name: str, ours: np.ndarray, recorded: Case, tolerance: Case, prefix: str
) -> Iterator[Part]:
    """Differences in grey levels of the mean and of the picked values."""
    found = fingerprint(torch.tensor(ours), picks=len(recorded["picked"]))
    yield f"{name} shape", float(found["shape"] != recorded["shape"]), 0
    yield f"{name} mean", abs(found["mean"] - recorded["mean"]), tolerance[f"{prefix}mean"]
    gaps = [abs(a - b) for a, b in zip(found["picked"], recorded["picked"], strict=True)]
    yield f"{name} picked", max(gaps), tolerance[f"{prefix}picked"]


def _full_size(case: Case) -> Iterator[Part]:
    network = build(_config(case)).eval()
    state = network.state_dict()
    ours = {
        "params": sum(p.numel() for p in network.parameters()),
        "trainable": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "state_entries": len(state),
        "state_crc32": state_crc32(state),
        "flop_counter_mode_flops": flops(network, tuple(case["input"])),
    }
    for name, value in case.items():
        if name not in ("input", "class", "config"):
            yield name, abs(ours[name] - value), 0


def flops(network: nn.Module, shape: tuple[int, ...]) -> int:
    """FlopCounterMode's count for one input: 2 for each multiply-accumulate."""
    device = torch.device("meta")
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        network.to(device)(torch.empty(shape, device=device))
    return counter.get_total_flops()
