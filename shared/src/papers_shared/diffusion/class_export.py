"""Trained networks in a small form, to be shipped or sampled from."""

from __future__ import annotations

import json
from typing import Any

import torch

from papers_shared.checkpoints import save_state_dict
from papers_shared.diffusion.class_family import ClassFamily, load_network
from papers_shared.diffusion.class_options import ClassExportConfig


def export(config: ClassExportConfig, family: ClassFamily) -> int:
    """Write the network with its configuration, and say how large it is.

    Raises:
        ValueError: the file does not say which network it holds.
    """
    network, facts = load_network(family, config.weights)
    if not facts:
        raise ValueError(
            f"{config.weights} does not say which network it holds: train did not write it"
        )
    if config.merge:
        network = family.merge(network)
    options: Any = network.options
    dtype = torch.float16 if config.half else torch.float32
    state = {name: value.to(dtype).contiguous() for name, value in network.state_dict().items()}
    told = {**facts, "config": options.to_dict()}
    save_state_dict(state, config.output, metadata={family.package: json.dumps(told)})
    count = sum(value.numel() for value in state.values())
    print(f"{config.output}: {count:,} values, {config.output.stat().st_size / 1e6:.2f} MB")
    return 0
