"""Checks of recorded mixers; ``transformer_compression.parity`` calls them by kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from papers_shared.parity import (
    Part,
    fingerprint_error,
    name_seeded_state_dict,
    seeded_input,
    values_error,
)
from transformer_compression.efficient.retention import Retention
from transformer_compression.efficient.ssm import selective_scan

Case = Mapping[str, Any]
TOLERANCE = 1e-5
RETENTION = 5e-5
AGREE = 1e-4  # two forms of one layer; the recording's own difference is rounding noise


def build_retention(case: Case) -> Retention:
    """The layer of a recorded case with its weights."""
    config = case["config"]
    if config["norm_affine"]:
        raise ValueError("no reader for a retention norm with weights")
    layer = Retention(
        config["embed"],
        config["heads"],
        value_width=config["value"],
        chunk=config["chunk"],
        eps=config["norm_eps"],
    )
    names = {name: torch.zeros(tuple(shape)) for name, shape in case["state"].items()}
    seeded = name_seeded_state_dict(names)
    layer.load_state_dict({n.rpartition("ret.")[2]: v for n, v in seeded.items()})
    return layer.eval()


@torch.no_grad()
def _retention(case: Case) -> Iterator[Part]:
    layer = build_retention(case)
    ((name, shape),) = case["inputs"].items()
    x = seeded_input(name, tuple(shape))
    state, steps = None, []
    for t in range(x.shape[1]):
        out, state = layer.step(x[:, t : t + 1], state)
        steps.append(out)
    ours = {
        "parallel": layer.parallel(x),
        "chunkwise": layer.chunkwise(x),
        "recurrent": torch.cat(steps, 1),
    }
    for form, recorded in case["outputs"].items():
        if form in ours:
            yield form, fingerprint_error(ours[form], recorded), RETENTION
        elif form == "decay_exp":
            yield form, values_error(layer.log_decay.exp(), recorded), RETENTION
        elif form != "max_diff":
            raise ValueError(f"no reader for the output {form!r}")
    for form in ("chunkwise", "recurrent"):
        yield f"parallel = {form}", (ours[form] - ours["parallel"]).abs().max().item(), AGREE


def _selective_scan(case: Case) -> Iterator[Part]:
    x = {n.rpartition(".")[2]: seeded_input(n, tuple(s)) for n, s in case["inputs"].items()}
    y, state = selective_scan(
        x["u"],
        x["delta"],
        -x["Alog"].exp(),
        x["B"],
        x["C"],
        D=x["D"],
        z=x["z"],
        delta_bias=x["dbias"],
        delta_softplus=case["config"]["delta_softplus"],
    )
    ours = {"y": y, "last_state": state}
    for name, recorded in case["outputs"].items():
        yield name, fingerprint_error(ours[name], recorded), TOLERANCE


KINDS: Mapping[str, Callable[[Case], Iterable[Part]]] = {
    "retention": _retention,
    "selective_scan": _selective_scan,
}
