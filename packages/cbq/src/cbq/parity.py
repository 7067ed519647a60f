"""Reads recordings of CBQ's primitives (see papers_shared.parity): CFP, AdaRound, quantizers.

By content: ``kind`` says what a case is, ``config`` and ``inputs`` build it; ``tolerance`` of the
file says how near values must be. A key that no line here compares fails.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cbq.cfp import RULES, CFPRule, activation_scale, find_outliers
from cbq.rounding import adaround_logits, commitment, rectified_sigmoid
from cbq.sizes import HOSTS, host_parameters
from papers_shared.name_seeded import name_seeded_state_dict
from papers_shared.parity import (
    Case,
    Part,
    Run,
    fingerprint_error,
    no_reader,
    normal,
    seeded_input,
    values_error,
)
from papers_shared.quantization import (
    Grid,
    fake_quantize_activation,
    grid_from_range,
    minmax_grid,
)

DESCRIPTIONS = {"about", "tolerance", "kinds", "library_versions"}
EXACT = {"zero", "zero_point"}


def checks(recording: Case) -> Iterator[tuple[str, Run]]:
    """Every case of a recording, to be run; what it does not know fails."""
    readers: dict[str, Callable[[Case, float], Iterable[Part]]] = {
        "cfp_activation_scale": _cfp,
        "adaround": _adaround,
        "uniform_weight": _uniform_weight,
        "uniform_activation": _uniform_activation,
    }
    relative = recording["tolerance"]["relative"]
    for section, content in recording.items():
        if section == "cases":
            for index, case in enumerate(content):
                kind = str(case.get("kind"))
                reader = readers.get(kind, partial(no_reader, f"kind {kind!r}"))
                yield f"[{index}] {case.get('case', kind)}", partial(reader, case, relative)
        elif section == "param_counts":
            for name, count in content.items():
                yield f"param_counts {name}", partial(_parameters, name, count)
        elif section not in DESCRIPTIONS:
            yield section, partial(no_reader, f"section {section!r}")


def _parameters(name: str, count: int) -> Iterator[Part]:
    if name not in HOSTS:
        raise ValueError(f"no host model {name!r}; known: {', '.join(HOSTS)}")
    yield name, float(abs(host_parameters(name) - count)), 0.0


def _compare(ours: Mapping[str, Any], recorded: Case, relative: float) -> Iterator[Part]:
    for name, value in recorded.items():
        if name not in ours:
            raise ValueError(f"no reader for the output {name!r}")
        mine = ours[name]
        if isinstance(value, Mapping) and "shape" in value:
            tolerance = 0.0 if name in EXACT else relative
            yield name, fingerprint_error(mine, value), tolerance
        elif isinstance(value, Mapping):
            for part, error, tolerance in _compare(mine, value, relative):
                yield f"{name} {part}", error, tolerance
        elif isinstance(value, float):
            yield name, values_error(mine, value), relative
        else:
            yield name, float(mine != value), 0.0


def _weight(case: Case, ending: str) -> tuple[str, Tensor]:
    """The name-seeded input whose name ends so, and its name."""
    found = [name for name in case["inputs"] if name.endswith(ending)]
    if len(found) != 1:
        raise ValueError(f"expected one input ending in {ending!r}, found {found}")
    shape = tuple(case["inputs"][found[0]])
    like = {found[0]: torch.empty(shape)}
    return found[0], name_seeded_state_dict(like)[found[0]]


def _outlying_input(name: str, shape: tuple[int, ...], recipe: str) -> Tensor:
    """Seeded activations with the outlier channels that the recipe plants."""
    x = seeded_input(name, shape).reshape(-1, shape[-1]).clone()
    steps = re.findall(r"columns (\d+)::(\d+) (times|plus|minus) ([\d.]+)", recipe)
    if not steps:
        raise ValueError(f"no reader for the recipe {recipe!r}")
    for first, stride, what, number in steps:
        columns = slice(int(first), None, int(stride))
        if what == "times":
            x[:, columns] *= float(number)
        else:
            x[:, columns] += float(number) if what == "plus" else -float(number)
    return x.view(shape)


# ---- CFP


def _cfp(case: Case, relative: float) -> Iterator[Part]:
    config = case["config"]
    ((name, entry),) = case["inputs"].items()
    x = _outlying_input(name, tuple(entry["shape"]), entry["recipe"])
    low, high = config["quantiles"]
    base = RULES["msmodelslim"]
    rule = CFPRule(low, high, config["alpha"], base.lam2, base.squared, base.rho)
    largest, smallest = x.amax(0), x.amin(0)
    sides = {"pos": find_outliers(largest, rule), "neg": find_outliers(-smallest, rule)}
    ours: dict[str, Any] = {}
    for rate in config["smooth_rate"]:
        named = CFPRule(low, high, rule.lam1, rule.lam2, rule.squared, rate)
        scale = activation_scale(largest, smallest, named)
        ours[f"scale_rate{str(rate).replace('.', '')}"] = scale
        ours["scaled_channels"] = (scale != 1).nonzero().flatten().tolist()
        ours["n_scaled"] = len(ours["scaled_channels"])
    for side, sign in (("pos", 1), ("neg", -1)):
        found = sides[side]
        ours[f"coarse_{side}_count"] = found.candidates
        ours[f"otsu_{side}"] = {"out_num": found.count, "threshold": sign * found.threshold}
    yield from _compare(ours, case["outputs"], relative)


# ---- AdaRound


def _adaround(case: Case, relative: float) -> Iterator[Part]:
    _, weight = _weight(case, "ada.weight")
    _, a1 = _weight(case, "A1.weight")
    _, a2 = _weight(case, "A2.weight")
    bits = case["config"]["bits"]
    grid = minmax_grid(weight, bits=bits, rule="brecq")
    position = weight / grid.scale
    lower = position.floor()
    v0 = adaround_logits(position - lower)
    change = 4 * (a1 @ a2)
    logits = {"V0": v0, "V1": v0 + change, "V2": change}
    ours: dict[str, Any] = {
        "delta": grid.scale,
        "zero_point": grid.zero,
        "nearest": grid.nearest(weight),
        "V0": v0,
    }
    top = 2**bits - 1

    def dequantize(added: Tensor) -> Tensor:
        return ((lower + added + grid.zero).clamp(0, top) - grid.zero) * grid.scale

    for name, v in logits.items():
        soft = rectified_sigmoid(v)
        ours[f"h_{name}"] = soft
        ours[f"soft_{name}"] = dequantize(soft)
        ours[f"hard_{name}"] = dequantize((v >= 0).float())
        betas = case["outputs"].get(f"reg_{name}_by_beta", {})
        ours[f"reg_{name}_by_beta"] = {beta: commitment(soft, float(beta)).sum() for beta in betas}
    yield from _compare(ours, case["outputs"], relative)


# ---- quantizers


def _uniform_weight(case: Case, relative: float) -> Iterator[Part]:
    config = case["config"]
    _, weight = _weight(case, "weight")
    group = config["group"] or weight.shape[1]
    grouped = weight.unflatten(1, (-1, group))
    low, high = grouped.amin(-1), grouped.amax(-1)
    if config["lwc"]:
        names = config["lwc_logits_names"]
        low, high = (
            end * (normal(names[key], (end.numel(), 1)) + 2).sigmoid().view_as(end)
            for end, key in ((low, "min"), (high, "max"))
        )
    grid = grid_from_range(
        low, high, bits=config["bits"], group=group, symmetric=config["symmetric"],
        rule="omniquant",
    )  # fmt: skip
    yield from _compare(_grid_outputs(grid, weight), case["outputs"], relative)


def _grid_outputs(grid: Grid, weight: Tensor) -> dict[str, Tensor]:
    return {
        "scale": grid.scale.reshape(-1, 1),
        "zero": grid.zero.reshape(-1, 1),
        "dequant": grid.nearest(weight),
    }


def _uniform_activation(case: Case, relative: float) -> Iterator[Part]:
    ((name, shape),) = case["inputs"].items()
    x = _outlying_input(name, tuple(shape), case["recipe"])
    if case["config"]["symmetric"]:
        raise ValueError("no reader for symmetric activations")
    bits = case["config"]["bits"]
    rows = x.reshape(-1, x.shape[-1])
    grid = minmax_grid(rows, bits=bits, rule="omniquant")
    ours = {
        "scale": grid.scale.view(*x.shape[:-1], 1),
        "zero": grid.zero.view(*x.shape[:-1], 1),
        "dequant": fake_quantize_activation(x, bits, "token_asymmetric"),
    }
    yield from _compare(ours, case["outputs"], relative)
