"""Option files of the authors' repository (basicsr's YAML) as configurations of ``dukd train``.

Source: dukd sheet 4.1, 4.4 and 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from dukd.config import OptionsConfig
from dukd.model import ARCHITECTURES
from papers_shared.checkpoints import atomic_path

_NOT_ARGUMENTS = ("type", "upscale", "num_in_ch", "num_out_ch")


def read_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Values of ``TrainConfig`` from an option file's content.

    Raises:
        ValueError: a key that is needed is missing, or a network is not one of ours.
    """
    try:
        scale, train = options["scale"], options["train"]
        data = options["datasets"]["train"]
        values: dict[str, Any] = {
            "student": _network(options["network_g"]),
            "teacher": _network(options["network_t"]),
            "scale": scale,
            "patch": data["gt_size"] // scale,
            "batch_size": data.get("batch_size_per_gpu", 16),
            "data": [data["dataroot_gt"]] if "dataroot_gt" in data else [],
            "steps": int(train["total_iter"]),
            "ema_decay": train.get("ema_decay", 0),
            "lr": float(train["optim_g"]["lr"]),
            "milestones": list(train["scheduler"]["milestones"]),
            "lr_factor": train["scheduler"]["gamma"],
            "pixel_weight": train["pixel_opt"]["loss_weight"],
            "kd_weight": train["kd_opt"]["loss_weight"],
            "seed": options.get("manual_seed", 0),
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"the options have no {error}: are they of a DUKD training?") from None
    path = options.get("path", {})
    values["teacher_weights"] = path.get("pretrain_network_t") or ""
    values["teacher_key"] = path.get("param_key_t", "params")
    if start := path.get("pretrain_network_g"):
        values["init" if path.get("strict_load_g", True) else "init_from"] = start
    if "dukd_opt" in train:
        values |= {
            "method": "dukd",
            "step_mode": "released",
            "released_order": True,
            "cells": train["dukd_opt"]["n_gt_sub"][0],  # the released code reads the first alone
            "zoom_out": bool(train["dukd_opt"].get("zoom_out", False)),
            "probability": (train.get("noisy") or {}).get("prob", 0),
        }
    elif "feature_distillation" in train:
        feature = train["feature_distillation"]
        method = {"SA": "fakd", "AT": "at", "Fitnet": "fitnet"}.get(feature["type"])
        if method is None:
            raise ValueError(f"no method compares features of type {feature['type']!r}")
        positions = feature["positions"]
        values |= {
            "method": method,
            "positions": _positions(
                positions.get("g", positions.get("t", []))
                if isinstance(positions, Mapping)
                else positions
            ),
            "teacher_positions": _positions(positions["t"])
            if isinstance(positions, Mapping) and "t" in positions
            else [],
            "feature_weight": train["feature_opt"]["loss_weight"],
        }
    else:
        values["method"] = "logits"
    return values


def _positions(items: Any) -> list[str]:
    return [f"body.{item}" if isinstance(item, int) else str(item) for item in items]


def _network(options: Mapping[str, Any]) -> str:
    arch = options["type"]
    if arch not in ARCHITECTURES:
        raise ValueError(f"no network of type {arch!r}; known: {', '.join(ARCHITECTURES)}")
    rest = {k: v for k, v in options.items() if k not in _NOT_ARGUMENTS}
    return f"{arch}({', '.join(f'{k}={v!r}' for k, v in rest.items())})"


def main(config: OptionsConfig) -> int:
    """Write the configuration.

    Raises:
        ValueError: the source is no option file.
        FileNotFoundError: it is not there.
    """
    if not config.source.is_file():
        raise FileNotFoundError(f"no option file {config.source}")
    try:
        options = yaml.safe_load(config.source.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{config.source} is not YAML: {error}") from None
    if not isinstance(options, Mapping):
        raise ValueError(f"{config.source} holds no options")
    with atomic_path(config.target) as temporary:
        text = yaml.safe_dump(read_options(options), sort_keys=False)
        temporary.write_text(text, encoding="utf-8")
    print(f"{config.target}: dukd train --config {config.target}")
    return 0
