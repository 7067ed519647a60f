"""What TAD-SR's networks cost: parameters, operations, time (recipes of its tables)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from papers_shared.complexity import (
    Comparison,
    compare_latency,
    count_macs,
    count_parameters,
)
from papers_shared.diffusion import vq
from papers_shared.diffusion.reproduce import autoencoder_counts, denoiser_inputs
from papers_shared.tables.recipe import Context, Measured
from tad_sr.discriminator import ProjectedDiscriminator, TimeAwareDiscriminator, discriminator_for
from tad_sr.model import VARIANTS, Config, build


class _Features(nn.Module):
    """A generator up to its middle, for counting."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> Any:
        return self.network.features(*inputs)  # type: ignore[operator]


class _OnMaps(nn.Module):
    """A discriminator that is given its maps one by one, for counting."""

    def __init__(self, discriminator: nn.Module) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, t: Any, *maps: Any) -> Any:
        return self.discriminator(list(maps), t)


def _macs(module: nn.Module, inputs: Any) -> float:
    return count_macs(module, inputs, rule="flop_counter").total / 2e9


def _generator(config: Config, *, features: bool = False) -> tuple[nn.Module, float]:
    with torch.device("meta"):
        network = build(config)
    module = _Features(network) if features else network
    return network, _macs(module, denoiser_inputs(config))


def generator(
    context: Context, *, variant: str, steps: int = 1, features: bool = False
) -> dict[str, Measured]:
    """Parameters (M) and multiply-accumulates (G) of student or teacher."""
    network, macs = _generator(VARIANTS[variant], features=features)
    row = {"macs": Measured(steps * macs)}
    return row if features else {"params": Measured(count_parameters(network) / 1e6), **row}


def autoencoder(context: Context, *, part: str) -> dict[str, Measured]:
    """The f4 autoencoder, or one of its ways, for a 256x256 picture."""
    return {k: Measured(v) for k, v in autoencoder_counts(vq.F4, side=256)[part].items()}


def image(context: Context, *, steps: int) -> dict[str, Measured]:
    """One 64x64 picture: encoding, the steps, decoding."""
    parts = autoencoder_counts(vq.F4, side=256)
    network, macs = _generator(VARIANTS["realsr"])
    total = parts["encoder"]["macs"] + steps * macs + parts["decoder"]["macs"]
    row = {"macs": Measured(total)}
    if steps == 1:
        params = count_parameters(network) / 1e6 + parts["whole"]["params"]
        row["params"] = Measured(params)
    return row


def discriminator(context: Context) -> dict[str, Measured]:
    """The discriminator of the x4 model on its five maps."""
    config = VARIANTS["realsr"]
    with torch.device("meta"):
        module = discriminator_for(config)
        network = build(config)
        maps = network.features(*denoiser_inputs(config))
    macs = _macs(_OnMaps(module), [torch.empty(1, device="meta"), *maps])
    return {"params": Measured(count_parameters(module) / 1e6), "macs": Measured(macs)}


def discriminator_seesr(context: Context) -> dict[str, Measured]:
    """The discriminator of the SeeSR variant."""
    with torch.device("meta"):
        module: ProjectedDiscriminator = TimeAwareDiscriminator()
    return {"params": Measured(count_parameters(module) / 1e6)}


def _speed(context: Context, *, whole: bool) -> dict[str, Comparison]:
    """Times of one and of fifteen steps in turns, full size, random weights."""
    torch.manual_seed(context.seed)
    network = build(VARIANTS["realsr"]).eval().to(context.device)
    vae = vq.build(vq.F4).eval().to(context.device)
    inputs = [
        torch.randn(1, 3, 64, 64, device=context.device),
        torch.zeros(1, device=context.device),
        torch.randn(1, 3, 64, 64, device=context.device),
    ]
    large = torch.rand(1, 3, 256, 256, device=context.device)

    def run(steps: int) -> None:
        if whole:
            vae.encode(large)
        for _ in range(steps):
            network(*inputs).sum().item()
        if whole:
            vae.decode(inputs[0]).sample.sum().item()

    turns = {str(steps): partial(run, steps) for steps in (1, 15)}
    with torch.inference_mode():
        run(1)
        return compare_latency(turns, baseline="15", warmup=0, rounds=3, device=context.device)


def speed(context: Context, *, whole: bool, steps: int) -> dict[str, Measured]:
    """Time and multiply-accumulates of ``steps`` steps, and how often faster one step is."""
    compared = _speed(context, whole=whole)
    counted = (
        image(context, steps=steps) if whole else generator(context, variant="realsr", steps=steps)
    )
    row = {"seconds": Measured(compared[str(steps)].latency.median), "macs": counted["macs"]}
    return row if steps == 15 else {**row, "speedup": Measured(compared["1"].speedup)}
